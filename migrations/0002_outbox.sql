-- The outbox: a log of dirty keys. A row says "what this sink shows of this key
-- may be out of date" and nothing else; it is never updated.

CREATE SEQUENCE outbox_seq AS bigint;

CREATE TABLE outbox (
    seq         bigint      NOT NULL DEFAULT nextval('outbox_seq'),
    sink        text        NOT NULL,
    -- A hash of the key, 0..63: see outbox_lane.
    lane        smallint    NOT NULL,
    kind        text        NOT NULL,
    key         uuid        NOT NULL,
    project_id  uuid        NOT NULL,
    -- Trace context and correlation id of the transaction, as JSON.
    headers     text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT outbox_sink CHECK (sink IN ('qdrant')),
    CONSTRAINT outbox_kind CHECK (kind IN ('chunk')),
    CONSTRAINT outbox_lane CHECK (lane BETWEEN 0 AND 63)
);

-- A relay reads all its lanes in one query and filters. With the lane in front of
-- seq, such a query would sort the whole backlog.
CREATE UNIQUE INDEX outbox_sink_seq ON outbox (sink, seq);

-- Rows come and go in order, so the table is a queue on disk: vacuum often, in small steps.
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);

-- The low six bits of the id. Ids are hashes already.
CREATE FUNCTION outbox_lane(key uuid) RETURNS smallint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (get_byte(uuid_send(key), 15) & 63)::smallint;

-- The fence of the reader needs every transaction to have its xid before it takes
-- a seq. The triggers below run after a write and have one; this makes it so for
-- whoever inserts by hand, too.
CREATE FUNCTION outbox_assign_xid() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_current_xact_id();
    RETURN NULL;
END $$;

CREATE TRIGGER outbox_assign_xid BEFORE INSERT ON outbox
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_assign_xid();

CREATE FUNCTION outbox_refuse_update() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'outbox rows are never updated'
        USING ERRCODE = 'feature_not_supported',
              HINT = 'Insert a row for the key: the relay delivers its current state.';
END $$;

CREATE TRIGGER outbox_refuse_update BEFORE UPDATE ON outbox
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_refuse_update();

-- Captures every change of a mirrored table, whoever makes it: application, psql,
-- COPY, cascade. First argument: the kind. The others: the sinks that mirror it.
CREATE FUNCTION outbox_capture() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    kind    text   := TG_ARGV[0];
    sinks   text[] := TG_ARGV[1:];
    headers text   := nullif(current_setting('waybill.headers', true), '');
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
        INSERT INTO outbox (sink, lane, kind, key, project_id, headers)
        SELECT s.sink, outbox_lane(n.id), kind, n.id, n.project_id, headers
        FROM new_rows n CROSS JOIN unnest(sinks) AS s (sink);
    WHEN 'UPDATE' THEN
        -- An update may move the id or the project: both lives are dirty.
        INSERT INTO outbox (sink, lane, kind, key, project_id, headers)
        SELECT s.sink, outbox_lane(d.id), kind, d.id, d.project_id, headers
        FROM (SELECT id, project_id FROM new_rows
              UNION
              SELECT id, project_id FROM old_rows) AS d
        CROSS JOIN unnest(sinks) AS s (sink);
    WHEN 'DELETE' THEN
        INSERT INTO outbox (sink, lane, kind, key, project_id, headers)
        SELECT s.sink, outbox_lane(o.id), kind, o.id, o.project_id, headers
        FROM old_rows o CROSS JOIN unnest(sinks) AS s (sink);
    ELSE
        RAISE EXCEPTION 'TRUNCATE of "%" is refused: its rows are mirrored in % and TRUNCATE does not tell which they were',
            TG_TABLE_NAME, array_to_string(sinks, ', ')
            USING ERRCODE = 'feature_not_supported',
                  HINT = format('Use DELETE FROM %I.', TG_TABLE_NAME);
    END CASE;
    RETURN NULL;
END $$;

CREATE TRIGGER chunk_outbox_insert AFTER INSERT ON chunk
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('chunk', 'qdrant');
CREATE TRIGGER chunk_outbox_update AFTER UPDATE ON chunk
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('chunk', 'qdrant');
CREATE TRIGGER chunk_outbox_delete AFTER DELETE ON chunk
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('chunk', 'qdrant');
CREATE TRIGGER chunk_outbox_truncate BEFORE TRUNCATE ON chunk
    FOR EACH STATEMENT EXECUTE FUNCTION outbox_capture('chunk', 'qdrant');

-- Where each lane stands, and who delivers it.
CREATE TABLE outbox_cursor (
    sink         text        NOT NULL,
    lane         smallint    NOT NULL,
    -- Everything at or below it is settled, and nothing more can appear there.
    closed_seq   bigint      NOT NULL DEFAULT 0,
    owner        uuid,
    -- Grows with every change of owner; what an older owner settles is refused.
    epoch        bigint      NOT NULL DEFAULT 0,
    lease_until  timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (sink, lane),
    CONSTRAINT outbox_cursor_lane CHECK (lane BETWEEN 0 AND 63)
) WITH (fillfactor = 20);

INSERT INTO outbox_cursor (sink, lane) SELECT 'qdrant', lane FROM generate_series(0, 63) AS lane;

-- Relays that are alive, with lanes or without: lanes are shared evenly among them.
CREATE TABLE relay_member (
    sink         text        NOT NULL,
    owner        uuid        NOT NULL,
    lease_until  timestamptz NOT NULL,
    PRIMARY KEY (sink, owner)
) WITH (fillfactor = 50);

-- What a sink confirmed of a key. Written with the settle, never before.
CREATE TABLE index_state (
    sink          text        NOT NULL,
    kind          text        NOT NULL,
    key           uuid        NOT NULL,
    -- The version the sink confirmed; of a deleted key, the last it confirmed.
    version       bigint      NOT NULL,
    -- A tombstone: the sink confirmed that it shows nothing of the key.
    deleted       boolean     NOT NULL DEFAULT false,
    confirmed_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, kind, key)
) WITH (fillfactor = 80);

CREATE INDEX index_state_tombstone ON index_state (confirmed_at) WHERE deleted;
