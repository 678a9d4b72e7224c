use serde_json::json;
use waybill_models::{ModelError, ProviderConfig, ProviderKind};

fn parse(value: serde_json::Value) -> ProviderConfig {
    serde_json::from_value(value).unwrap()
}

fn refused(value: serde_json::Value) -> String {
    let error = parse(value).validate().unwrap_err();
    assert!(matches!(error, ModelError::Config { .. }));
    error.to_string()
}

#[test]
fn nothing_configured_is_a_local_model() {
    let config = parse(json!({}));
    assert_eq!(config.kind, ProviderKind::Local);
    config.validate().unwrap();
}

#[test]
fn unknown_keys_are_refused() {
    for value in [json!({"knd": "tei"}), json!({"openai": {"url": "x"}}), json!({"kind": "x"})] {
        assert!(serde_json::from_value::<ProviderConfig>(value).is_err());
    }
}

#[test]
fn only_the_section_in_use_is_checked() {
    parse(json!({"kind": "local", "tei": {"base_url": "nonsense"}})).validate().unwrap();
}

#[test]
fn bad_values_are_named_with_the_fix() {
    let problem = refused(json!({"kind": "openai", "openai": {"base_url": "api.example.com"}}));
    assert!(problem.contains("openai.base_url") && problem.contains("http://"), "{problem}");
    let problem = refused(json!({"kind": "tei", "tei": {"base_url": "http://u:p@host"}}));
    assert!(problem.contains("api_key") && !problem.contains("u:p"), "{problem}");
    let problem = refused(json!({"local": {"batch": 0}}));
    assert!(problem.contains("local.batch: is 0, not 1 to"), "{problem}");
    let problem = refused(json!({"kind": "openai", "openai": {"send_dimensions": true}}));
    assert!(problem.contains("openai.dimensions"), "{problem}");
}

#[test]
fn a_key_is_never_printed() {
    let config = parse(json!({"kind": "openai", "openai": {"api_key": "sk-secret"}}));
    let printed = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
    assert!(!printed.contains("sk-secret") && printed.contains("redacted"), "{printed}");
}

#[tokio::test]
async fn two_keys_or_an_unreadable_one_are_refused() {
    let both = json!({"kind": "openai", "openai": {"api_key": "a", "api_key_file": "/b"}});
    let missing = json!({"kind": "openai", "openai": {"api_key_file": "/nonexistent/key"}});
    let multiline = json!({"kind": "openai", "openai": {"api_key": "first\nsecond"}});
    for config in [both, missing, multiline] {
        let Err(error) = waybill_models::build(&parse(config)).await else { panic!("the provider was made") };
        assert!(error.to_string().contains("openai.api_key_file"), "{error}");
        assert!(!error.to_string().contains("second"));
    }
}
