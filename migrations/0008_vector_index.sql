-- The vector index: which making of the live collection claims speak of, and a collection that is
-- being built beside it for another model. Pauses that end by themselves. Bulk loads.

CREATE SEQUENCE vector_index_generation AS integer;

CREATE TABLE vector_index (
    single            boolean      PRIMARY KEY DEFAULT true CHECK (single),
    -- Changes before an empty collection is made where there was one, and never comes back: what
    -- index_state claims of an earlier one was lost with it.
    generation        integer      NOT NULL DEFAULT 0,
    -- The model that a collection is being built for; null if none is. Whoever delivers, delivers
    -- to both.
    build_model       text,
    build_started_at  timestamptz,
    -- Keys below it have been written to the outbox, so that they come into the new collection.
    build_position    uuid         NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    build_keys        bigint       NOT NULL DEFAULT 0,
    -- When the alias was moved. Searches know the old collection for some seconds more.
    build_moved_at    timestamptz,
    -- The collection that the alias pointed to until then.
    build_from        text,
    -- How large a segment was to be before it was indexed, in KiB, before a bulk load raised it;
    -- null if none did.
    indexing_threshold  bigint
) WITH (fillfactor = 50);

INSERT INTO vector_index DEFAULT VALUES;

-- Under which generation the sink confirmed it. A lower one than vector_index has is void.
ALTER TABLE index_state ADD COLUMN generation integer NOT NULL DEFAULT 0;

-- A pause of somebody who may die: it ends unless it is renewed.
ALTER TABLE sink_pause ADD COLUMN until timestamptz;

-- The pause, by its paused_at, that this relay has seen; since then it has nothing under way.
ALTER TABLE relay_member ADD COLUMN still_for timestamptz;

-- Somebody loads very much: the sink makes room for it until the last of them has ended.
CREATE TABLE bulk_load (
    id          text         PRIMARY KEY,
    until       timestamptz  NOT NULL,
    started_at  timestamptz  NOT NULL DEFAULT now()
);
