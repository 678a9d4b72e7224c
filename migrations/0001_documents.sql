-- Projects, sources and chunks: what clients write and searches read.
--
-- Ids are UUIDv5 of what identifies the row, made by the domain crate, so that
-- doing a write twice is harmless.

-- One sequence for every version there is. A row that is deleted and made anew
-- under the same id gets a higher version than it ever had, so no late delivery
-- of its first life can pass for news.
CREATE SEQUENCE row_version AS bigint;

CREATE FUNCTION set_row_version() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- Runs with the row locked, so versions of one row grow in commit order.
    NEW.version := nextval('row_version');
    RETURN NEW;
END $$;

CREATE TABLE project (
    id          uuid        PRIMARY KEY,
    name        text        NOT NULL UNIQUE,
    settings    jsonb       NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT project_name_form CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$')
);

CREATE TABLE source (
    id            uuid        PRIMARY KEY,
    project_id    uuid        NOT NULL REFERENCES project ON DELETE CASCADE,
    uri           text        NOT NULL,
    title         text        NOT NULL,
    -- The title was taken from the document or the uri: nobody gave one. Tells a put
    -- without a title from one that takes a given title away, before the body is read.
    title_derived boolean     NOT NULL DEFAULT false,
    media_type    text        NOT NULL,
    metadata      jsonb       NOT NULL DEFAULT '{}',
    -- SHA-256 of the body as it was sent.
    content_hash  bytea       NOT NULL,
    -- The readable text; chunks point into it.
    text          text        NOT NULL,
    -- What is written here is what the writer knows. `indexed` is derived from
    -- index_state when it is asked for: no row claims what a sink has yet to confirm.
    state         text        NOT NULL,
    chunk_count   bigint      NOT NULL DEFAULT 0,
    -- How the text was cut; another number means that it must be cut again.
    chunker       text        NOT NULL,
    version       bigint      NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT source_uri_length CHECK (octet_length(uri) BETWEEN 1 AND 2048),
    CONSTRAINT source_media_type CHECK (media_type IN ('text', 'markdown', 'html')),
    CONSTRAINT source_state CHECK (state IN ('received', 'chunked', 'extracting', 'failed')),
    CONSTRAINT source_content_hash_length CHECK (octet_length(content_hash) = 32)
);

CREATE UNIQUE INDEX source_project_uri ON source (project_id, uri COLLATE "C");

CREATE TRIGGER source_version BEFORE INSERT OR UPDATE ON source
    FOR EACH ROW EXECUTE FUNCTION set_row_version();

CREATE TABLE chunk (
    id            uuid        PRIMARY KEY,
    -- The source's, repeated so that the outbox row can be made from this row alone.
    project_id    uuid        NOT NULL,
    source_id     uuid        NOT NULL REFERENCES source ON DELETE CASCADE,
    ordinal       integer     NOT NULL,
    -- Headings above the text, outermost first.
    headings      text[]      NOT NULL DEFAULT '{}',
    text          text        NOT NULL,
    -- SHA-256 of what is embedded (headings and text); the key of embedding_cache.
    text_hash     bytea       NOT NULL,
    start_byte    bigint      NOT NULL,
    end_byte      bigint      NOT NULL,
    token_count   integer     NOT NULL,
    version       bigint      NOT NULL DEFAULT 0,
    CONSTRAINT chunk_text_hash_length CHECK (octet_length(text_hash) = 32),
    CONSTRAINT chunk_range CHECK (0 <= start_byte AND start_byte <= end_byte)
);

CREATE INDEX chunk_source ON chunk (source_id, ordinal);

CREATE TRIGGER chunk_version BEFORE INSERT OR UPDATE ON chunk
    FOR EACH ROW EXECUTE FUNCTION set_row_version();

-- A chunk's point carries its source's metadata. When that changes, the chunks
-- are touched: their versions grow, and their own triggers fill the outbox.
CREATE FUNCTION touch_chunks_of_source() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE chunk c SET project_id = n.project_id
    FROM new_rows n JOIN old_rows o USING (id)
    WHERE c.source_id = n.id
      AND (n.metadata, n.project_id) IS DISTINCT FROM (o.metadata, o.project_id);
    RETURN NULL;
END $$;

CREATE TRIGGER source_touch_chunks AFTER UPDATE ON source
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION touch_chunks_of_source();

-- The answer that a put with a request id gave, so that a retry gets it again
-- and writes nothing. Rows are dropped after a day.
CREATE TABLE put_request (
    project_id      uuid        NOT NULL REFERENCES project ON DELETE CASCADE,
    request_id      text        NOT NULL,
    -- SHA-256 of the request: another request under the same id is refused.
    fingerprint     bytea       NOT NULL,
    source_id       uuid        NOT NULL,
    outcome         text        NOT NULL,
    version         bigint      NOT NULL,
    chunk_count     bigint      NOT NULL,
    chunks_added    bigint      NOT NULL,
    chunks_removed  bigint      NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, request_id),
    CONSTRAINT put_request_outcome CHECK (outcome IN ('created', 'changed', 'unchanged')),
    CONSTRAINT put_request_id_length CHECK (octet_length(request_id) BETWEEN 1 AND 128)
);

CREATE INDEX put_request_created ON put_request (created_at);

-- Vectors by content: the same text under the same model is embedded once.
CREATE TABLE embedding_cache (
    model         text        NOT NULL,
    text_hash     bytea       NOT NULL,
    -- Little-endian f32.
    dense         bytea       NOT NULL,
    -- Moved at most once a day, so that reading costs no write.
    last_used_on  date        NOT NULL DEFAULT current_date,
    PRIMARY KEY (model, text_hash)
);

CREATE INDEX embedding_cache_last_used ON embedding_cache (last_used_on);

-- What page tokens are signed with: one row, the same for every replica of a service, and
-- never shown.
CREATE TABLE page_token_key (
    key     bytea    NOT NULL,
    single  boolean  PRIMARY KEY DEFAULT true CHECK (single)
);

INSERT INTO page_token_key (key) VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
