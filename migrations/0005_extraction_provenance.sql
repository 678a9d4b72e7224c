-- Who made what, and what came of each passage.

-- The client's own name for a run of puts. A chunk keeps that of the put that first made it.
ALTER TABLE source ADD COLUMN job_id uuid;
ALTER TABLE chunk ADD COLUMN job_id uuid;

ALTER TABLE llm_request
    -- What became of the entities, apart from the facts. Written with the rows it speaks of:
    -- `none`, none is stored; `partial`, some are; `complete`, all that the answer named are.
    ADD COLUMN entities_state   text  NOT NULL DEFAULT 'none',
    -- Entities and facts of the answer that were not kept: how many, by reason. NULL: none.
    ADD COLUMN entities_dropped jsonb,
    ADD COLUMN facts_dropped_by jsonb,
    -- Trace context and correlation id of the transaction that made the request pending, as JSON.
    ADD COLUMN headers          text,
    ADD CONSTRAINT llm_request_entities_state CHECK (entities_state IN ('none', 'partial', 'complete')),
    -- No row is said to be there before the answer is.
    ADD CONSTRAINT llm_request_entities_done CHECK (entities_state = 'none' OR state = 'done');

ALTER TABLE llm_request ALTER COLUMN headers SET DEFAULT nullif(current_setting('waybill.headers', true), '');

-- A request that is sent again belongs to who sends it again; a sweep has no trace, and leaves
-- the first.
CREATE FUNCTION set_request_headers() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.headers := coalesce(nullif(current_setting('waybill.headers', true), ''), NEW.headers);
    RETURN NEW;
END $$;

CREATE TRIGGER llm_request_headers BEFORE UPDATE ON llm_request
    FOR EACH ROW WHEN (NEW.state = 'pending' AND OLD.state <> 'pending') EXECUTE FUNCTION set_request_headers();

-- The requests of a job in pages.
CREATE INDEX llm_request_job_page ON llm_request (job_id, id);
