-- Extraction: jobs, the requests that a language model answers, and what came of them.

ALTER TABLE outbox DROP CONSTRAINT outbox_sink, DROP CONSTRAINT outbox_kind,
    ADD CONSTRAINT outbox_sink CHECK (sink IN ('qdrant', 'llm')),
    ADD CONSTRAINT outbox_kind CHECK (kind IN ('chunk', 'llm_request', 'extraction', 'entity'));

INSERT INTO outbox_cursor (sink, lane) SELECT 'llm', lane FROM generate_series(0, 63) AS lane;

-- Work that somebody asked for. How far it is, is counted from its requests when it is
-- asked for: no row claims what they don't say.
CREATE TABLE job (
    id            uuid        PRIMARY KEY,
    project_id    uuid        NOT NULL REFERENCES project ON DELETE CASCADE,
    -- The settings of the extraction, as they were when it was started.
    settings      jsonb       NOT NULL,
    cancelled_at  timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX job_project ON job (project_id, created_at DESC, id);

-- One chunk to be read by a language model.
--
--   pending ──▶ queued ──▶ running ──▶ done | dead
--      ▲          │           │
--      └──────────┴───────────┘  Redis lost it
--   any of the first three ──▶ cancelled
CREATE TABLE llm_request (
    id                 uuid        PRIMARY KEY,
    project_id         uuid        NOT NULL,
    chunk_id           uuid        NOT NULL REFERENCES chunk ON DELETE CASCADE,
    job_id             uuid        NOT NULL REFERENCES job ON DELETE CASCADE,
    priority           text        NOT NULL DEFAULT 'normal',
    state              text        NOT NULL DEFAULT 'pending',
    -- The message that Redis confirmed.
    stream_id          text,
    -- Calls that failed and count; a 429 does not.
    attempts           integer     NOT NULL DEFAULT 0,
    last_error         text,
    last_error_class   text,
    -- The answer, once there is one.
    model              text,
    prompt_version     text,
    prompt_tokens      bigint      NOT NULL DEFAULT 0,
    completion_tokens  bigint      NOT NULL DEFAULT 0,
    cost               float8      NOT NULL DEFAULT 0,
    -- Facts that broke a rule and were not stored.
    facts_dropped      integer     NOT NULL DEFAULT 0,
    version            bigint      NOT NULL DEFAULT 0,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT llm_request_priority CHECK (priority IN ('high', 'normal', 'low')),
    CONSTRAINT llm_request_state CHECK (state IN ('pending', 'queued', 'running', 'done', 'dead', 'cancelled')),
    CONSTRAINT llm_request_error_class CHECK (last_error_class IN ('transient', 'throttled', 'permanent', 'unknown')),
    -- What is with Redis is known by its message.
    CONSTRAINT llm_request_queued CHECK (state <> 'queued' OR stream_id IS NOT NULL)
) WITH (fillfactor = 70);

CREATE INDEX llm_request_job ON llm_request (job_id, state);
CREATE INDEX llm_request_chunk ON llm_request (chunk_id);
CREATE INDEX llm_request_with_redis ON llm_request (updated_at) WHERE state IN ('queued', 'running');

CREATE TRIGGER llm_request_version BEFORE INSERT OR UPDATE ON llm_request
    FOR EACH ROW EXECUTE FUNCTION set_row_version();

-- Only what is pending has to be sent. What a settle or a worker writes to a request makes
-- no outbox row; what goes back to pending, by whomever, does.
CREATE FUNCTION outbox_capture_pending() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (sink, lane, kind, key, project_id, headers)
    SELECT 'llm', outbox_lane(n.id), 'llm_request', n.id, n.project_id,
           nullif(current_setting('waybill.headers', true), '')
    FROM new_rows n
    WHERE n.state = 'pending';
    RETURN NULL;
END $$;

CREATE TRIGGER llm_request_outbox_insert AFTER INSERT ON llm_request
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture_pending();
CREATE TRIGGER llm_request_outbox_update AFTER UPDATE ON llm_request
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture_pending();
CREATE TRIGGER llm_request_outbox_truncate BEFORE TRUNCATE ON llm_request
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('llm_request', 'llm');

-- New chunks are read by themselves where the project names a job for it
-- (settings.extraction.job_id), in the transaction that makes them, whoever makes them.
CREATE FUNCTION request_extraction() RETURNS trigger
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
    JOIN source s ON s.id = n.source_id AND starts_with(s.uri, coalesce(p.settings -> 'extraction' ->> 'uri_prefix', ''))
    ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER chunk_request_extraction AFTER INSERT ON chunk
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION request_extraction();

-- A fact that a model read in a chunk, with the words it rests on.
CREATE TABLE extraction (
    -- Derived from chunk, type and normalised statement.
    id              uuid        PRIMARY KEY,
    project_id      uuid        NOT NULL,
    chunk_id        uuid        NOT NULL REFERENCES chunk ON DELETE CASCADE,
    job_id          uuid        NOT NULL REFERENCES job ON DELETE CASCADE,
    type            text        NOT NULL,
    statement       text        NOT NULL,
    subject         text,
    predicate       text,
    object          text,
    confidence      real        NOT NULL,
    -- Verbatim, and where it stands in the chunk's text, in bytes.
    quote           text        NOT NULL,
    quote_start     integer     NOT NULL,
    quote_end       integer     NOT NULL,
    model           text        NOT NULL,
    prompt_version  text        NOT NULL,
    version         bigint      NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT extraction_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT extraction_quote CHECK (0 <= quote_start AND quote_start < quote_end)
);

CREATE INDEX extraction_chunk ON extraction (chunk_id);
CREATE INDEX extraction_project ON extraction (project_id, id);

CREATE TRIGGER extraction_version BEFORE INSERT OR UPDATE ON extraction
    FOR EACH ROW EXECUTE FUNCTION set_row_version();

-- Somebody or something that facts are about, once in a project.
CREATE TABLE entity (
    -- Derived from project, type and canonical name.
    id          uuid        PRIMARY KEY,
    project_id  uuid        NOT NULL REFERENCES project ON DELETE CASCADE,
    type        text        NOT NULL,
    canonical   text        NOT NULL,
    -- Every spelling that was met, in the order of their bytes.
    aliases     text[]      NOT NULL,
    version     bigint      NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- Not unique: the id, which is derived from these, is. Two workers that make the same entity at
-- once meet there, and ON CONFLICT knows of one index only.
CREATE INDEX entity_canonical ON entity (project_id, canonical);

CREATE TRIGGER entity_version BEFORE INSERT OR UPDATE ON entity
    FOR EACH ROW EXECUTE FUNCTION set_row_version();

CREATE TABLE extraction_entity (
    extraction_id  uuid  NOT NULL REFERENCES extraction ON DELETE CASCADE,
    entity_id      uuid  NOT NULL REFERENCES entity ON DELETE CASCADE,
    role           text  NOT NULL,
    PRIMARY KEY (extraction_id, entity_id, role)
);

CREATE INDEX extraction_entity_entity ON extraction_entity (entity_id);

-- Facts and entities are points too.
CREATE TRIGGER extraction_outbox_insert AFTER INSERT ON extraction
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('extraction', 'qdrant');
CREATE TRIGGER extraction_outbox_update AFTER UPDATE ON extraction
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('extraction', 'qdrant');
CREATE TRIGGER extraction_outbox_delete AFTER DELETE ON extraction
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('extraction', 'qdrant');
CREATE TRIGGER extraction_outbox_truncate BEFORE TRUNCATE ON extraction
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('extraction', 'qdrant');

CREATE TRIGGER entity_outbox_insert AFTER INSERT ON entity
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('entity', 'qdrant');
CREATE TRIGGER entity_outbox_update AFTER UPDATE ON entity
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('entity', 'qdrant');
CREATE TRIGGER entity_outbox_delete AFTER DELETE ON entity
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('entity', 'qdrant');
CREATE TRIGGER entity_outbox_truncate BEFORE TRUNCATE ON entity
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('entity', 'qdrant');

-- A fact's point carries the metadata of its source: when the chunk is touched, so is the fact.
CREATE FUNCTION touch_extractions_of_chunk() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE extraction e SET project_id = n.project_id FROM new_rows n WHERE e.chunk_id = n.id;
    RETURN NULL;
END $$;

CREATE TRIGGER chunk_touch_extractions AFTER UPDATE ON chunk
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION touch_extractions_of_chunk();

-- What was given up, with all that is needed to understand it.
CREATE TABLE dead_letter (
    request_id   uuid        PRIMARY KEY REFERENCES llm_request ON DELETE CASCADE,
    project_id   uuid        NOT NULL,
    error        text        NOT NULL,
    error_class  text        NOT NULL,
    attempts     integer     NOT NULL,
    -- The beginning of the answer that could not be used, if there was one.
    excerpt      text,
    model        text        NOT NULL,
    prompt_version text      NOT NULL,
    trace_id     text,
    first_failed_at timestamptz NOT NULL DEFAULT now(),
    last_failed_at  timestamptz NOT NULL DEFAULT now()
);

-- A UUIDv3 of a namespace and a name: ids that a single INSERT ... SELECT can derive.
CREATE FUNCTION derived_id(namespace uuid, name text) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (WITH hash AS (SELECT decode(md5(uuid_send(namespace) || convert_to(name, 'UTF8')), 'hex') AS bytes),
             version AS (SELECT set_byte(bytes, 6, (get_byte(bytes, 6) & 15) | 48) AS bytes FROM hash)
        SELECT encode(set_byte(bytes, 8, (get_byte(bytes, 8) & 63) | 128), 'hex')::uuid FROM version);
