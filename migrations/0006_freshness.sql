-- Provisional sources: written, but not there for anybody until all of them is confirmed.

-- Until when the source may stay unconfirmed. NULL: it is there. Otherwise it is hidden from
-- every read, and whoever finds this time past takes it back: so a taking-back survives any crash.
ALTER TABLE source ADD COLUMN provisional_until timestamptz;

CREATE INDEX source_provisional ON source (provisional_until) WHERE provisional_until IS NOT NULL;

-- Follow-up requests are made of what is there. A provisional source has its own made when it
-- is confirmed, below.
CREATE OR REPLACE FUNCTION request_extraction() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- Who names such a job locks the project for update: either it sees these chunks, or this
    -- sees the job.
    PERFORM FROM project p WHERE p.id IN (SELECT project_id FROM new_rows) ORDER BY p.id FOR KEY SHARE;
    INSERT INTO llm_request (id, project_id, chunk_id, job_id, priority)
    SELECT derived_id(j.id, n.id::text), n.project_id, n.id, j.id, coalesce(j.settings ->> 'priority', 'normal')
    FROM new_rows n
    JOIN project p ON p.id = n.project_id
    JOIN job j ON j.id = (p.settings -> 'extraction' ->> 'job_id')::uuid AND j.cancelled_at IS NULL
    JOIN source s ON s.id = n.source_id AND s.provisional_until IS NULL
                 AND starts_with(s.uri, coalesce(p.settings -> 'extraction' ->> 'uri_prefix', ''))
    ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END $$;

-- The same for all chunks of a source that has just been confirmed.
CREATE FUNCTION request_extraction_of_confirmed() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM project p WHERE p.id = NEW.project_id FOR KEY SHARE;
    INSERT INTO llm_request (id, project_id, chunk_id, job_id, priority)
    SELECT derived_id(j.id, c.id::text), c.project_id, c.id, j.id, coalesce(j.settings ->> 'priority', 'normal')
    FROM chunk c
    JOIN project p ON p.id = c.project_id
    JOIN job j ON j.id = (p.settings -> 'extraction' ->> 'job_id')::uuid AND j.cancelled_at IS NULL
    WHERE c.source_id = NEW.id
      AND starts_with(NEW.uri, coalesce(p.settings -> 'extraction' ->> 'uri_prefix', ''))
    ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER source_request_extraction AFTER UPDATE ON source
    FOR EACH ROW WHEN (OLD.provisional_until IS NOT NULL AND NEW.provisional_until IS NULL)
    EXECUTE FUNCTION request_extraction_of_confirmed();
