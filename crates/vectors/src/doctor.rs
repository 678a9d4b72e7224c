use qdrant_client::qdrant::{CollectionStatus, GetCollectionInfoRequest, StrictModeConfig};
use waybill_domain::Checkup;

use crate::Vectors;

/// Conditional upserts, without which a late request would overwrite newer points, came with it.
const OLDEST: (u32, u32) = (1, 16);

/// What the protocol is spoken in; Qdrant keeps it from one minor version to the next.
const SPOKEN: (u32, u32) = (1, 20);

/// What one request of ours may hold.
const LARGEST_UPSERT: u64 = 2_048;
const LARGEST_QUERY: u32 = 1_000;

impl Vectors {
    /// Looks at everything in Qdrant that is known to bite. `alias` is the live collection's.
    pub async fn checkup(&self, alias: &str) -> Vec<Checkup> {
        let version = match self.health().await {
            Ok(version) => version,
            Err(error) => {
                let fix = "check that it runs, that qdrant.url names its gRPC port (6334), qdrant.api_key, and qdrant.tls if it speaks TLS";
                return vec![Checkup::bad("connection", error.to_string(), fix)];
            }
        };
        let mut found = vec![check_version(&version)];
        match self.alias_target(alias).await {
            Ok(None) => found.push(Checkup::good("collection", "none yet: the first delivery makes one")),
            Ok(Some(name)) => found.extend(self.check_collection(&name).await),
            Err(error) => {
                found.push(Checkup::bad("collection", error.to_string(), "check the rights of qdrant.api_key"))
            }
        }
        found
    }

    async fn check_collection(&self, name: &str) -> Vec<Checkup> {
        let request = GetCollectionInfoRequest { collection_name: name.to_owned() };
        let info = match self.call("get_collection", name, self.timeout(), self.collections().get(request)).await {
            Ok(reply) => reply.result.unwrap_or_default(),
            Err(error) => {
                let fix = "`waybill verify` compares it with Postgres, and `--repair` fills it again";
                return vec![Checkup::bad("collection", error.to_string(), fix)];
            }
        };
        let points = info.points_count.unwrap_or_default();
        let status = match info.status() {
            CollectionStatus::Red => {
                let fix = "look into Qdrant's log: an optimization failed, mostly for want of disk or memory";
                Checkup::bad("collection", format!("{name} is red"), fix)
            }
            _ => Checkup::good("collection", format!("{name}, {points} points")),
        };
        let strict = info.config.and_then(|config| config.strict_mode_config).unwrap_or_default();
        vec![status, check_strict_mode(&strict)]
    }
}

fn check_version(version: &str) -> Checkup {
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().ok());
    let Some((major, minor)) = numbers.next().flatten().zip(numbers.next().flatten()) else {
        return Checkup::risk("version", format!("{version:?} is no version"), "use a release of Qdrant");
    };
    let (oldest, spoken) = (format!("{}.{}", OLDEST.0, OLDEST.1), format!("{}.{}", SPOKEN.0, SPOKEN.1));
    if (major, minor) < OLDEST {
        let fix = format!("upgrade to {oldest} or later: older ones can't upsert on a condition");
        return Checkup::bad("version", version, fix);
    }
    if major != SPOKEN.0 || minor > SPOKEN.1 + 1 {
        let fix = format!("this program speaks the protocol of {spoken}: try it on a copy first, or upgrade Waybill");
        return Checkup::risk("version", version, fix);
    }
    Checkup::good("version", version)
}

fn check_strict_mode(strict: &StrictModeConfig) -> Checkup {
    if strict.enabled != Some(true) {
        return Checkup::good("strict mode", "off");
    }
    let mut bites = Vec::new();
    if strict.upsert_max_batchsize.is_some_and(|most| most < LARGEST_UPSERT) {
        bites.push(format!("upsert_max_batchsize is below {LARGEST_UPSERT}"));
    }
    if strict.max_query_limit.is_some_and(|most| most < LARGEST_QUERY) {
        bites.push(format!("max_query_limit is below {LARGEST_QUERY}"));
    }
    if strict.unindexed_filtering_retrieve == Some(false) {
        bites.push("searches by metadata are refused (unindexed_filtering_retrieve)".to_owned());
    }
    if strict.unindexed_filtering_update == Some(false) {
        bites.push("deletions by a version are refused (unindexed_filtering_update)".to_owned());
    }
    if strict.read_rate_limit.is_some() || strict.write_rate_limit.is_some() {
        bites.push("there is a rate limit: deliveries wait for it".to_owned());
    }
    match bites.is_empty() {
        true => Checkup::good("strict mode", "on, and nothing of it is in the way"),
        false => {
            let fix = "change it with PATCH /collections/<name>, strict_mode_config";
            Checkup::risk("strict mode", bites.join("; "), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use waybill_domain::Verdict;

    use super::*;

    #[test]
    fn versions_are_told_apart() {
        for (version, verdict) in [
            ("1.15.9", Verdict::Bad),
            ("1.16.0", Verdict::Good),
            ("v1.21.3", Verdict::Good),
            ("1.22.0", Verdict::Risk),
            ("2.0.0", Verdict::Risk),
            ("dev", Verdict::Risk),
        ] {
            assert_eq!(check_version(version).verdict, verdict, "{version}");
        }
    }

    #[test]
    fn what_strict_mode_refuses_is_said() {
        assert_eq!(check_strict_mode(&StrictModeConfig::default()).verdict, Verdict::Good);
        let strict = StrictModeConfig {
            enabled: Some(true),
            unindexed_filtering_retrieve: Some(false),
            upsert_max_batchsize: Some(100),
            ..StrictModeConfig::default()
        };
        let found = check_strict_mode(&strict);
        assert_eq!(found.verdict, Verdict::Risk);
        assert!(found.found.contains("upsert_max_batchsize") && found.found.contains("metadata"), "{found:?}");
        let harmless = StrictModeConfig { enabled: Some(true), ..StrictModeConfig::default() };
        assert_eq!(check_strict_mode(&harmless).verdict, Verdict::Good);
    }
}
