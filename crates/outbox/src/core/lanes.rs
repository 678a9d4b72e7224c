use waybill_domain::LANES;

/// Returns how many lanes a relay may hold: `members` relays are alive, `rank` of them (by
/// id) come before it. Shares differ by one at the most and cover all lanes together.
#[must_use]
pub fn fair_share(members: u32, rank: u32) -> u32 {
    let (lanes, members) = (u32::from(LANES), members.max(1));
    lanes / members + u32::from(rank < lanes % members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_all_lanes_and_differ_by_one_at_the_most() {
        for members in 1..=80 {
            let shares: Vec<u32> = (0..members).map(|rank| fair_share(members, rank)).collect();
            assert_eq!(shares.iter().sum::<u32>(), 64, "{members} relays");
            assert!(shares[0] - shares[shares.len() - 1] <= 1, "{members} relays");
        }
        assert_eq!(fair_share(0, 0), 64);
    }
}
