//! What each rendering of the chart keeps, whatever the values.

use waybill_deploy_checks::chart::{Manifest, cases};
use waybill_deploy_checks::policy::{self, Policy};

/// Applies a rule to the chart rendered with each of the sample values.
fn hold(policy: Policy) {
    let mut findings = Vec::new();
    for case in cases().unwrap() {
        let manifests: Vec<Manifest> = case.manifests().unwrap();
        assert!(manifests.len() > 4, "{}: only {} manifests", case.name, manifests.len());
        findings.extend(policy(&manifests).into_iter().map(|finding| format!("ci/{}.yaml: {finding}", case.name)));
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn images_name_a_version() {
    hold(policy::images_name_a_version);
}

#[test]
fn resources_are_set() {
    hold(policy::resources_are_set);
}

#[test]
fn services_are_probed() {
    hold(policy::services_are_probed);
}

#[test]
fn pods_have_no_privilege() {
    hold(policy::pods_have_no_privilege);
}

#[test]
fn no_token_is_mounted() {
    hold(policy::no_token_is_mounted);
}

#[test]
fn the_grace_period_fits() {
    hold(policy::the_grace_period_fits);
}

#[test]
fn volumes_and_files_fit() {
    hold(policy::volumes_and_files_fit);
}

#[test]
fn variables_are_set_once() {
    hold(policy::variables_are_set_once);
}

#[test]
fn secrets_stay_in_secrets() {
    hold(policy::secrets_stay_in_secrets);
}

#[test]
fn selectors_match_labels() {
    hold(policy::selectors_match_labels);
}

#[test]
fn scrapes_speak_as_the_admin_port() {
    hold(policy::scrapes_speak_as_the_admin_port);
}

#[test]
fn services_lead_to_ports() {
    hold(policy::services_lead_to_ports);
}

#[test]
fn endpoints_lead_to_services() {
    hold(policy::endpoints_lead_to_services);
}

#[test]
fn names_are_fit() {
    hold(policy::names_are_fit);
}

#[test]
fn network_policies_cover_every_pod() {
    hold(policy::network_policies_cover_every_pod);
}

#[test]
fn disruption_is_bounded() {
    hold(policy::disruption_is_bounded);
}

#[test]
fn the_migration_is_a_hook() {
    hold(policy::the_migration_is_a_hook);
}

#[test]
fn accounts_are_there() {
    hold(policy::accounts_are_there);
}
