use std::path::PathBuf;

use secrecy::SecretString;
use waybill_domain::ErrorClass;
use waybill_llm::{LlmError, OpenAi, OpenAiConfig, Usage};

const KEY: &str = "sk-very-secret";

fn base() -> OpenAiConfig {
    OpenAiConfig::default()
}

fn problem(config: &OpenAiConfig) -> String {
    let error = OpenAi::new(config).err().unwrap();
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(matches!(error, LlmError::Config { .. }));
    error.to_string()
}

#[test]
fn the_defaults_are_valid() {
    assert!(OpenAi::new(&base()).is_ok());
}

#[test]
fn a_bad_value_is_named_with_its_key() {
    let cases = [
        (OpenAiConfig { base_url: "nowhere".to_owned(), ..base() }, "openai.base_url: is no URL"),
        (OpenAiConfig { base_url: "ftp://host".to_owned(), ..base() }, "openai.base_url: has another scheme"),
        (OpenAiConfig { base_url: "http://u:p@host".to_owned(), ..base() }, "openai.base_url: holds credentials"),
        (OpenAiConfig { model: " ".to_owned(), ..base() }, "openai.model: is empty"),
        (OpenAiConfig { temperature: f32::NAN, ..base() }, "openai.temperature: is NaN"),
        (OpenAiConfig { timeout_ms: 0, ..base() }, "openai.timeout_ms: is 0"),
        (OpenAiConfig { facts_max: 65, ..base() }, "openai.facts_max: is 65, not 1 to 64"),
        (OpenAiConfig { entities_per_fact_max: 0, ..base() }, "openai.entities_per_fact_max: is 0, not 1 to 16"),
        (OpenAiConfig { max_tokens: Some(0), ..base() }, "openai.max_tokens: is 0"),
        (OpenAiConfig { max_tokens: Some(131_073), ..base() }, "openai.max_tokens: is 131073"),
        (OpenAiConfig { prompt_token_price: -1.0, ..base() }, "openai.prompt_token_price: is -1"),
        (OpenAiConfig { completion_token_price: f64::INFINITY, ..base() }, "openai.completion_token_price: is inf"),
        (OpenAiConfig { api_key_file: Some(PathBuf::from("/nowhere")), ..base() }, "openai.api_key_file: cannot read"),
    ];
    for (config, start) in cases {
        let message = problem(&config);
        assert!(message.starts_with(start), "{message}");
    }
}

#[test]
fn a_key_comes_from_one_place_and_is_usable() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{KEY}\n")).unwrap();
    let from_file = OpenAiConfig { api_key_file: Some(file.path().to_owned()), ..base() };
    assert!(OpenAi::new(&from_file).is_ok());
    let both = OpenAiConfig { api_key: Some(KEY.into()), ..from_file };
    assert!(problem(&both).contains("stands beside api_key"));
    let broken = OpenAiConfig { api_key: Some(SecretString::from(format!("{KEY} and more"))), ..base() };
    let message = problem(&broken);
    assert!(message.contains("no usable key") && !message.contains(KEY), "{message}");
}

#[test]
fn the_key_is_never_printed() {
    let config = OpenAiConfig { api_key: Some(KEY.into()), ..base() };
    let printed = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
    assert!(printed.contains("[redacted]") && !printed.contains(KEY), "{printed}");
}

#[test]
fn an_unknown_key_is_refused() {
    assert!(serde_json::from_str::<OpenAiConfig>(r#"{"modell": "m"}"#).is_err());
}

#[test]
fn a_call_costs_what_its_tokens_cost() {
    let config = OpenAiConfig { prompt_token_price: 0.15, completion_token_price: 0.6, ..base() };
    let cost = config.cost(Usage { prompt_tokens: 2_000_000, completion_tokens: 500_000 });
    assert!((cost - 0.6).abs() < 1e-9, "{cost}");
}
