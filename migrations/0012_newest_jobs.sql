-- What metrics say of jobs is about the newest of all projects.

CREATE INDEX job_newest ON job (created_at DESC);
