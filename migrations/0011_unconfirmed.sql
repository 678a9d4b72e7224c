-- Whether a sink has yet to confirm a key as it is now, or as it was asked for at `asked_at`: the
-- one place that says so. Postgres puts it into the query that asks. Each LIMIT keeps it from
-- making a join or a hash of the whole table.
CREATE FUNCTION unconfirmed(of_sink text, of_kind text, of_key uuid, asked_at timestamptz)
    RETURNS TABLE (dirty boolean)
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN of_kind = 'llm_request' THEN r.is_pending IS TRUE
        WHEN k.version IS NULL THEN i.version IS NOT NULL AND NOT i.deleted
        ELSE i.version IS NULL OR i.deleted OR i.version < k.version OR i.confirmed_at < asked_at
    END
    FROM (VALUES (1)) AS one
    LEFT JOIN LATERAL (
        SELECT v.version FROM (
            SELECT c.version FROM chunk c WHERE of_kind = 'chunk' AND c.id = of_key
            UNION ALL SELECT x.version FROM extraction x WHERE of_kind = 'extraction' AND x.id = of_key
            UNION ALL SELECT e.version FROM entity e WHERE of_kind = 'entity' AND e.id = of_key) AS v
        LIMIT 1) AS k ON true
    LEFT JOIN LATERAL (
        SELECT s.version, s.deleted, s.confirmed_at FROM index_state s
        WHERE s.sink = of_sink AND s.kind = of_kind AND s.key = of_key LIMIT 1) AS i ON true
    -- A join, too: a subquery in the answer would be asked wherever the answer is used.
    LEFT JOIN LATERAL (
        SELECT q.state = 'pending' AS is_pending FROM llm_request q
        WHERE of_kind = 'llm_request' AND q.id = of_key LIMIT 1) AS r ON true
$$;

-- As before, but for how it is planned. Who comes first to an empty database keeps the plan that
-- is right for empty tables, until autovacuum looks at them: it joined the chunks with all sources.
-- The lookups under LATERAL and LIMIT go by key, however many rows there are.
CREATE OR REPLACE FUNCTION request_extraction() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- Who names such a job locks the project for update: either it sees these chunks, or this
    -- sees the job.
    PERFORM FROM project p WHERE p.id IN (SELECT project_id FROM new_rows) ORDER BY p.id FOR KEY SHARE;
    INSERT INTO llm_request (id, project_id, chunk_id, job_id, priority)
    SELECT derived_id(j.id, n.id::text), n.project_id, n.id, j.id, j.priority
    FROM new_rows n
    CROSS JOIN LATERAL (
        SELECT j.id, coalesce(j.settings ->> 'priority', 'normal') AS priority,
               coalesce(p.settings -> 'extraction' ->> 'uri_prefix', '') AS uri_prefix
        FROM project p
        JOIN job j ON j.id = (p.settings -> 'extraction' ->> 'job_id')::uuid AND j.cancelled_at IS NULL
        WHERE p.id = n.project_id LIMIT 1) AS j
    CROSS JOIN LATERAL (
        SELECT FROM source s
        WHERE s.id = n.source_id AND s.provisional_until IS NULL AND starts_with(s.uri, j.uri_prefix) LIMIT 1) AS s
    ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END $$;
