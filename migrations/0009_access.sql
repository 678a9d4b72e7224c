-- Who may call, and what operators did.

CREATE TABLE api_key (
    -- The part of the key that is shown: it names the key in lists, logs and the audit.
    prefix              text         PRIMARY KEY CHECK (prefix ~ '^[a-z2-7]{8}$'),
    -- SHA-256 of the whole key, which is random enough to need no salt. The key itself is nowhere.
    hash                bytea        NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    name                text         NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    role                text         NOT NULL CHECK (role IN ('reader', 'writer', 'operator')),
    -- Names, as a key may be made before its project; null: all projects, also those to come.
    projects            text[]       CHECK (cardinality(projects) BETWEEN 1 AND 1000),
    -- What the key may use up in each process; null: what is configured.
    requests_per_second integer      CHECK (requests_per_second > 0),
    concurrent_calls    integer      CHECK (concurrent_calls > 0),
    max_message_bytes   bigint       CHECK (max_message_bytes > 0),
    created_at          timestamptz  NOT NULL DEFAULT now(),
    created_by          text         NOT NULL,
    expires_at          timestamptz,
    revoked_at          timestamptz,
    revoked_by          text,
    CHECK (role <> 'operator' OR projects IS NULL)
);

-- A row is made before the action, so that none goes unnoticed, and told its end by an update: a
-- row without an end is an action whose process died.
CREATE TABLE audit (
    id          bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz  NOT NULL DEFAULT now(),
    -- Who: a key's name and prefix, or who ran the command.
    actor       text         NOT NULL,
    key_prefix  text,
    -- What: a gRPC method, or a command.
    action      text         NOT NULL,
    -- The request as JSON, cut if it is very long.
    request     text         NOT NULL,
    request_id  text         NOT NULL,
    ended_at    timestamptz,
    -- A gRPC status code's name, such as OK.
    outcome     text,
    -- The last answer as JSON, or the status message.
    result      text,
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

CREATE INDEX audit_at ON audit (at);
