use std::collections::HashMap;

use deadpool_redis::redis::cmd;
use waybill_domain::{Checkup, Clock as _, SystemClock};

use crate::{LlmQueue, Result};

/// XAUTOCLAIM, by which a dead worker's messages are taken over, came with it.
const OLDEST: (u32, u32) = (6, 2);

impl LlmQueue {
    /// Looks at everything in Redis that is known to bite.
    pub async fn checkup(&self) -> Vec<Checkup> {
        let info = match self.info().await {
            Ok(info) => info,
            Err(error) => {
                let fix = "check that it runs, redis.url with its password, and redis.tls if the server speaks TLS";
                return vec![Checkup::bad("connection", error.to_string(), fix)];
            }
        };
        let mut found = vec![check_version(&info), check_eviction(&info), check_persistence(&info), check_role(&info)];
        match self.clock().await {
            Ok(skew_ms) => found.push(Checkup::clock(skew_ms)),
            Err(error) => found.push(Checkup::bad("clock", error.to_string(), "let the user run TIME")),
        }
        found.push(match self.try_script().await {
            Ok(()) => Checkup::good("rights", "scripts and streams"),
            Err(error) => {
                let fix = "let the user run scripts and stream commands on keys that begin with redis.prefix";
                Checkup::bad("rights", error.to_string(), fix)
            }
        });
        found
    }

    async fn info(&self) -> Result<HashMap<String, String>> {
        let text: String = self.shared.connections.session().await?.command(&cmd("INFO")).await?;
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    /// Returns how many milliseconds the server's clock is ahead of ours.
    async fn clock(&self) -> Result<i64> {
        let (seconds, micros): (i64, i64) = self.shared.connections.session().await?.command(&cmd("TIME")).await?;
        Ok(seconds * 1_000 + micros / 1_000 - SystemClock.now().timestamp_millis())
    }

    /// Tries what the queue does all the time, on a key that nobody has.
    async fn try_script(&self) -> Result<()> {
        let key = format!("{}:doctor", self.shared.prefix);
        let mut command = cmd("EVAL");
        command.arg("return redis.call('XLEN', KEYS[1])").arg(1).arg(key);
        self.shared.connections.session().await?.command::<i64>(&command).await.map(drop)
    }
}

fn of<'a>(info: &'a HashMap<String, String>, name: &str) -> &'a str {
    info.get(name).map_or("", String::as_str)
}

fn check_version(info: &HashMap<String, String>) -> Checkup {
    let version = of(info, "redis_version");
    let shown = match of(info, "valkey_version") {
        "" => format!("Redis {version}"),
        valkey => format!("Valkey {valkey}"),
    };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    match numbers.next().flatten().zip(numbers.next().flatten()) {
        Some(version) if version >= OLDEST => Checkup::good("version", shown),
        _ => Checkup::bad("version", shown, format!("upgrade to {}.{} or later", OLDEST.0, OLDEST.1)),
    }
}

fn check_eviction(info: &HashMap<String, String>) -> Checkup {
    let (policy, most) = (of(info, "maxmemory_policy"), of(info, "maxmemory"));
    let subject = "eviction";
    match (policy, most) {
        ("noeviction" | "", _) => Checkup::good(subject, "none: a full server says so, and delivery waits"),
        (policy, "0") => {
            Checkup::risk(subject, format!("{policy}, without a limit yet"), "set maxmemory-policy noeviction")
        }
        (policy, _) => {
            let fix =
                "set maxmemory-policy noeviction: evicted requests wait until Waybill has noticed that they are gone";
            Checkup::bad(subject, policy, fix)
        }
    }
}

fn check_persistence(info: &HashMap<String, String>) -> Checkup {
    let subject = "persistence";
    let failed = [("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")]
        .into_iter()
        .find(|(name, _)| of(info, name) == "err");
    if let Some((_, what)) = failed {
        let fix = "look into Redis' log: the disk is full or can't be written";
        return Checkup::bad(subject, format!("the last {what} could not be written"), fix);
    }
    if of(info, "aof_enabled") == "1" {
        return Checkup::good(subject, "append-only file");
    }
    let fix =
        "set appendonly yes: without it a restart loses requests, which Waybill finds and sends again after a while";
    Checkup::risk(subject, "no append-only file", fix)
}

fn check_role(info: &HashMap<String, String>) -> Checkup {
    match of(info, "role") {
        "master" | "" => Checkup::good("role", "primary"),
        role => Checkup::bad("role", role, "let redis.url name the primary: a replica can't be written"),
    }
}

#[cfg(test)]
mod tests {
    use waybill_domain::Verdict;

    use super::*;

    fn info(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_bites_is_told() {
        assert_eq!(check_version(&info(&[("redis_version", "6.0.16")])).verdict, Verdict::Bad);
        assert_eq!(check_version(&info(&[("redis_version", "7.0.15")])).verdict, Verdict::Good);
        let policy = |policy, most| check_eviction(&info(&[("maxmemory_policy", policy), ("maxmemory", most)])).verdict;
        assert_eq!(policy("noeviction", "100"), Verdict::Good);
        assert_eq!(policy("allkeys-lru", "100"), Verdict::Bad);
        assert_eq!(policy("allkeys-lru", "0"), Verdict::Risk);
        assert_eq!(check_persistence(&info(&[("aof_enabled", "0")])).verdict, Verdict::Risk);
        let broken = info(&[("aof_enabled", "1"), ("aof_last_write_status", "err")]);
        assert_eq!(check_persistence(&broken).verdict, Verdict::Bad);
        assert_eq!(check_role(&info(&[("role", "slave")])).verdict, Verdict::Bad);
    }
}
