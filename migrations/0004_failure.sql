-- Failure: keys that a sink refuses each by itself, keys that were given up, sinks that are paused.

-- A key that a sink refused while it took others. Its lane goes on without it.
CREATE TABLE outbox_retry (
    sink             text        NOT NULL,
    lane             smallint    NOT NULL,
    kind             text        NOT NULL,
    key              uuid        NOT NULL,
    project_id       uuid        NOT NULL,
    -- Deliveries that failed.
    attempts         integer     NOT NULL,
    next_at          timestamptz NOT NULL,
    error            text        NOT NULL,
    error_class      text        NOT NULL,
    -- Of the change that was delivered first in vain.
    trace_id         text,
    first_failed_at  timestamptz NOT NULL DEFAULT now(),
    last_failed_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, kind, key),
    CONSTRAINT outbox_retry_error_class CHECK (error_class IN ('transient', 'throttled', 'permanent', 'unknown'))
);

CREATE INDEX outbox_retry_due ON outbox_retry (sink, next_at);

-- What was given up: a key that a sink never took, or a request that no model answered. One
-- letter for a key and sink; it goes when the key is delivered after all.
ALTER TABLE dead_letter RENAME TO dead_letter_of_requests;

CREATE TABLE dead_letter (
    id               uuid        NOT NULL DEFAULT gen_random_uuid() CONSTRAINT dead_letter_id PRIMARY KEY,
    sink             text        NOT NULL,
    kind             text        NOT NULL,
    key              uuid        NOT NULL,
    project_id       uuid        NOT NULL,
    error            text        NOT NULL,
    error_class      text        NOT NULL,
    attempts         integer     NOT NULL,
    -- The beginning of a model's answer that could not be used, if there was one.
    excerpt          text,
    -- Of a request: the model that was asked, and the prompt.
    model            text,
    prompt_version   text,
    trace_id         text,
    first_failed_at  timestamptz NOT NULL DEFAULT now(),
    last_failed_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dead_letter_key UNIQUE (sink, kind, key),
    CONSTRAINT dead_letter_error_class CHECK (error_class IN ('transient', 'throttled', 'permanent', 'unknown'))
);

CREATE INDEX dead_letter_project ON dead_letter (project_id, id);

INSERT INTO dead_letter (sink, kind, key, project_id, error, error_class, attempts, excerpt, model, prompt_version, trace_id, first_failed_at, last_failed_at)
SELECT 'llm', 'llm_request', request_id, project_id, error, error_class, attempts, excerpt, model, prompt_version, trace_id, first_failed_at, last_failed_at
FROM dead_letter_of_requests;

DROP TABLE dead_letter_of_requests;

-- A request that is wanted no longer, or again, is not given up any more.
CREATE FUNCTION clear_dead_letters_of_requests() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM dead_letter d USING old_rows o
        WHERE d.sink = 'llm' AND d.kind = 'llm_request' AND d.key = o.id;
        DELETE FROM outbox_retry r USING old_rows o
        WHERE r.sink = 'llm' AND r.kind = 'llm_request' AND r.key = o.id;
    ELSE
        DELETE FROM dead_letter d USING old_rows o JOIN new_rows n USING (id)
        WHERE o.state = 'dead' AND n.state <> 'dead'
          AND d.sink = 'llm' AND d.kind = 'llm_request' AND d.key = o.id;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER llm_request_letter_update AFTER UPDATE ON llm_request
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION clear_dead_letters_of_requests();
CREATE TRIGGER llm_request_letter_delete AFTER DELETE ON llm_request
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION clear_dead_letters_of_requests();

-- A sink that an operator stopped, for all relays and until somebody resumes it.
CREATE TABLE sink_pause (
    sink       text        PRIMARY KEY,
    paused_by  text        NOT NULL,
    reason     text        NOT NULL,
    paused_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT sink_pause_sink CHECK (sink IN ('qdrant', 'llm'))
);

-- The trace that headers belong to. Never fails, whatever somebody put there.
CREATE FUNCTION trace_id_of(headers text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN substring(headers from '"traceparent"\s*:\s*"[0-9a-f]{2}-([0-9a-f]{32})-');
