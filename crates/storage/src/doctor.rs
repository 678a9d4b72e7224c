//! What is known to bite in a Postgres.

use waybill_domain::{Checkup, Clock as _, SystemClock};

use crate::{Db, Result, SCHEMA_VERSION, StorageError};

/// The oldest major version that the tests run on.
const OLDEST_MAJOR: i32 = 15;

/// Services in an installation, each with a pool of its own; more than one of each is usual.
const PROCESSES: i32 = 4;

/// A transaction that is older holds back vacuum longer than the outbox likes.
const OLD_TRANSACTION_S: f64 = 600.0;

/// Looks at everything in Postgres that is known to bite. `max_connections` is each process' own.
pub async fn checkup(db: &Db, max_connections: u32) -> Vec<Checkup> {
    let server = match server(db).await {
        Ok(server) => server,
        Err(error) => {
            let fix = "check that it runs, and database.url with its user, password and sslmode";
            return vec![Checkup::bad("connection", error.to_string(), fix)];
        }
    };
    let mut found = server.checkups(max_connections);
    found.push(match db.check_schema().await {
        Ok(()) => Checkup::good("schema", format!("version {SCHEMA_VERSION}")),
        Err(error @ StorageError::SchemaVersion { .. }) => {
            // It says what to do.
            let text = error.to_string();
            let (what, fix) = text.split_once(": ").unwrap_or((&text, "run `waybill migrate`"));
            Checkup::bad("schema", what, fix)
        }
        Err(error) => Checkup::bad("schema", error.to_string(), "let the user read _sqlx_migrations"),
    });
    found.push(match lacking(db).await {
        Ok(None) => Checkup::good("rights", "all that services need"),
        Ok(Some(tables)) => {
            let fix = "GRANT SELECT, INSERT, UPDATE, DELETE on them, or let the owner of the schema run the services";
            Checkup::bad("rights", format!("not all on {tables}"), fix)
        }
        Err(error) => Checkup::bad("rights", error.to_string(), "let the user read pg_class"),
    });
    found
}

struct Server {
    version: i32,
    is_replica: bool,
    fsync: bool,
    synchronous_commit: String,
    connections: i32,
    connections_used: i64,
    oldest_transaction_s: f64,
    oldest_transaction: Option<String>,
    skew_ms: i64,
}

async fn server(db: &Db) -> Result<Server> {
    let row = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::int AS "version!", pg_is_in_recovery() AS "is_replica!",
                  current_setting('fsync') = 'on' AS "fsync!", current_setting('synchronous_commit') AS "synchronous_commit!",
                  current_setting('max_connections')::int AS "connections!",
                  (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS "connections_used!",
                  extract(epoch FROM now() - o.xact_start)::float8 AS oldest_s,
                  CASE WHEN o.pid IS NOT NULL
                       THEN format('process %s, application %L, %s', o.pid, o.application_name, o.state) END AS oldest,
                  (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS "now_ms!"
           FROM (SELECT) AS one
           LEFT JOIN LATERAL (
               SELECT pid, application_name, state, xact_start FROM pg_stat_activity
               WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()
               ORDER BY xact_start NULLS LAST LIMIT 1) AS o ON true"#
    )
    .fetch_one(db.pool())
    .await?;
    Ok(Server {
        version: row.version,
        is_replica: row.is_replica,
        fsync: row.fsync,
        synchronous_commit: row.synchronous_commit,
        connections: row.connections,
        connections_used: row.connections_used,
        oldest_transaction_s: row.oldest_s.unwrap_or_default(),
        oldest_transaction: row.oldest,
        skew_ms: row.now_ms - SystemClock.now().timestamp_millis(),
    })
}

impl Server {
    fn checkups(&self, max_connections: u32) -> Vec<Checkup> {
        let major = self.version / 10_000;
        let version = match major {
            OLDEST_MAJOR.. => Checkup::good("version", major.to_string()),
            _ => Checkup::bad("version", major.to_string(), format!("upgrade to {OLDEST_MAJOR} or later")),
        };
        let role = match self.is_replica {
            false => Checkup::good("role", "primary"),
            true => Checkup::bad("role", "replica", "let database.url name the primary: a replica can't be written"),
        };
        let off = |setting: &str| {
            let fix = "turn it on: what Postgres has acknowledged must be there after a crash";
            Checkup::bad("durability", format!("{setting} is off"), fix)
        };
        let durability = match (self.fsync, self.synchronous_commit.as_str()) {
            (false, _) => off("fsync"),
            (true, "off") => off("synchronous_commit"),
            (true, level) => Checkup::good("durability", format!("fsync on, synchronous_commit {level}")),
        };
        let needed = i64::from(max_connections) * i64::from(PROCESSES);
        let used = format!("{} of {} in use", self.connections_used, self.connections);
        let connections = if needed > i64::from(self.connections) {
            let fix = format!(
                "{PROCESSES} services may open {max_connections} each: lower database.max_connections, raise max_connections of Postgres"
            );
            Checkup::risk("connections", used, fix)
        } else {
            Checkup::good("connections", used)
        };
        let vacuum = match &self.oldest_transaction {
            Some(who) if self.oldest_transaction_s > OLD_TRANSACTION_S => {
                let fix = "end it, and see to it that it does not come back: while it is open, the outbox grows";
                let found = format!("held back for {:.0} s by {who}", self.oldest_transaction_s);
                Checkup::risk("vacuum", found, fix)
            }
            _ => Checkup::good("vacuum", "not held back"),
        };
        vec![version, role, durability, connections, vacuum, Checkup::clock(self.skew_ms)]
    }
}

/// Names the tables on which the user lacks a right.
async fn lacking(db: &Db) -> Result<Option<String>> {
    Ok(sqlx::query_scalar!(
        r#"SELECT string_agg(c.relname, ', ' ORDER BY c.relname)
           FROM pg_class c
           WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace AND c.relname <> '_sqlx_migrations'
             AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                      AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))"#
    )
    .fetch_one(db.pool())
    .await?)
}

#[cfg(test)]
mod tests {
    use waybill_domain::Verdict;

    use super::*;

    fn sound() -> Server {
        Server {
            version: 150_004,
            is_replica: false,
            fsync: true,
            synchronous_commit: "on".to_owned(),
            connections: 100,
            connections_used: 7,
            oldest_transaction_s: 0.0,
            oldest_transaction: None,
            skew_ms: 3,
        }
    }

    fn verdict(server: &Server, subject: &str) -> Verdict {
        server.checkups(20).into_iter().find(|checkup| checkup.subject == subject).unwrap().verdict
    }

    #[test]
    fn what_bites_is_told() {
        assert!(sound().checkups(20).iter().all(|checkup| checkup.verdict == Verdict::Good));
        assert_eq!(verdict(&Server { version: 140_011, ..sound() }, "version"), Verdict::Bad);
        assert_eq!(verdict(&Server { is_replica: true, ..sound() }, "role"), Verdict::Bad);
        assert_eq!(verdict(&Server { fsync: false, ..sound() }, "durability"), Verdict::Bad);
        let lazy = Server { synchronous_commit: "off".to_owned(), ..sound() };
        assert_eq!(verdict(&lazy, "durability"), Verdict::Bad);
        assert_eq!(verdict(&Server { connections: 50, ..sound() }, "connections"), Verdict::Risk);
        let who = Some("process 7".to_owned());
        let held = Server { oldest_transaction_s: 4_000.0, oldest_transaction: who, ..sound() };
        assert_eq!(verdict(&held, "vacuum"), Verdict::Risk);
        assert_eq!(verdict(&Server { skew_ms: -9_000, ..sound() }, "clock"), Verdict::Risk);
    }
}
