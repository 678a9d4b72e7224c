-- Totals that outlive processes and rows: what metrics count from the beginning.

CREATE TABLE total (
    name   text    NOT NULL,
    label  text    NOT NULL,
    value  bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (name, label)
) WITH (fillfactor = 50);

-- A letter goes when its key is delivered after all; that it was written stays counted. One
-- that is written again while it stands is the same letter.
CREATE FUNCTION count_dead_letters() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO total (name, label, value)
    SELECT 'dead_letters', n.sink, count(*) FROM new_rows n GROUP BY n.sink ORDER BY n.sink
    ON CONFLICT (name, label) DO UPDATE SET value = total.value + excluded.value;
    RETURN NULL;
END $$;

CREATE TRIGGER dead_letter_count AFTER INSERT ON dead_letter
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_dead_letters();

INSERT INTO total (name, label, value) SELECT 'dead_letters', sink, count(*) FROM dead_letter GROUP BY sink;
