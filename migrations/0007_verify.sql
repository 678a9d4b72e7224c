-- Verify and repair: walks in the order of ids, and who is on the pass in the background.

-- A walk of one project must not read the others.
CREATE INDEX chunk_project ON chunk (project_id, id);
CREATE INDEX entity_project ON entity (project_id, id);

-- The scrubber: one pass at a time over everything, by one relay, continued by another where
-- that left it.
CREATE TABLE relay_scrub (
    single           boolean      PRIMARY KEY DEFAULT true CHECK (single),
    owner            uuid,
    lease_until      timestamptz  NOT NULL DEFAULT '-infinity',
    -- The pass under way; null if there is none.
    started_at       timestamptz,
    -- Keys below it were compared.
    position         uuid         NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    tally            jsonb        NOT NULL DEFAULT '{}',
    -- A check found drift: a pass that begins later answers it.
    wanted_at        timestamptz,
    -- The last pass that got to its end.
    last_started_at  timestamptz,
    last_ended_at    timestamptz,
    last_tally       jsonb
) WITH (fillfactor = 50);

INSERT INTO relay_scrub DEFAULT VALUES;
