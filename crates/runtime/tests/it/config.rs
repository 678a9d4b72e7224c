use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use waybill_runtime::config::{ConfigError, Loader, Secret, SecretUrl, ShutdownConfig, render_redacted};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    database: Database,
    provider: Provider,
    shutdown: ShutdownConfig,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Database {
    url: SecretUrl,
    max_connections: u32,
}

impl Default for Database {
    fn default() -> Self {
        Self { url: SecretUrl::new("postgres://waybill@localhost/waybill"), max_connections: 10 }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Provider {
    kind: Kind,
    model: String,
    api_key: Secret,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Local,
    Openai,
}

fn loader(variables: &[(&str, &str)]) -> Loader {
    Loader::from_variables(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn load(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    loader(variables).load()
}

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("write");
    path
}

#[test]
fn environment_beats_file_beats_defaults() {
    let dir = tempfile::tempdir().expect("dir");
    let toml =
        file(&dir, "waybill.toml", "[database]\nmax_connections = 20\n[provider]\nmodel = \"a\"\nkind = \"openai\"");
    let config: Config =
        loader(&[("WAYBILL_PROVIDER__MODEL", "b"), ("OTHER", "x")]).toml_file(Some(&toml)).load().expect("load");
    assert_eq!(config.database.url.expose(), "postgres://waybill@localhost/waybill");
    assert_eq!(config.database.max_connections, 20);
    assert_eq!(config.provider.model, "b");
    assert_eq!(config.provider.kind, Kind::Openai);
}

#[test]
fn an_alias_stands_below_our_own_name() {
    let alias = |variables: &[(&str, &str)]| {
        let config: Config = loader(variables).alias("DATABASE_URL", "database.url").load().expect("load");
        config.database.url.expose().to_owned()
    };
    assert_eq!(alias(&[("DATABASE_URL", "postgres://a/b")]), "postgres://a/b");
    let both = [("WAYBILL_DATABASE__URL", "postgres://ours/b"), ("DATABASE_URL", "postgres://a/b")];
    assert_eq!(alias(&both), "postgres://ours/b");
}

#[test]
fn a_text_that_looks_like_something_else_is_still_a_text() {
    for text in ["12345", "true", "-1.5", "[a, b", "[1]", "{a=1}", "1e9"] {
        let config = load(&[("WAYBILL_PROVIDER__MODEL", text), ("WAYBILL_PROVIDER__API_KEY", text)]).expect(text);
        assert_eq!(config.provider.model, text);
        assert_eq!(config.provider.api_key.expose(), text);
    }
}

#[test]
fn variables_that_are_no_keys_are_left_alone() {
    load(&[
        ("WAYBILL_LOG", "debug"),
        ("WAYBILL_CONFIG", "x.toml"),
        ("WAYBILL_TEST_QDRANT_URL", "http://x"),
        ("WAYBILL_RELAY_SERVICE_HOST", "10.0.0.1"),
        ("WAYBILL_RELAY_SERVICE_PORT_GRPC", "50054"),
        ("WAYBILL_RELAY_PORT", "tcp://10.0.0.1:50054"),
        ("WAYBILL_RELAY_PORT_50054_TCP_ADDR", "10.0.0.1"),
    ])
    .expect("load");
    let _: Config = loader(&[("WAYBILL_DATA_DIR", "/x")]).ignore("WAYBILL_DATA_DIR").load().expect("ignored");
}

#[test]
fn a_wrong_type_names_key_value_origin_and_fix() {
    let error = load(&[("WAYBILL_DATABASE__MAX_CONNECTIONS", "many")]).expect_err("wrong");
    assert_eq!(
        error.to_string(),
        "configuration: `database.max_connections` = \"many\" (from environment variable \
         WAYBILL_DATABASE__MAX_CONNECTIONS): is a text; write a whole number, 0 or more"
    );
    let error = load(&[("WAYBILL_DATABASE__MAX_CONNECTIONS", "-1")]).expect_err("negative");
    assert!(error.to_string().contains("= -1 (from"), "{error}");
}

#[test]
fn a_misspelt_key_suggests_the_right_one() {
    let dir = tempfile::tempdir().expect("dir");
    let toml = file(&dir, "waybill.toml", "[database]\nmax_conections = 20");
    let error = loader(&[]).toml_file(Some(&toml)).load::<Config>().expect_err("unknown");
    assert_eq!(error.key.as_deref(), Some("database.max_conections"));
    assert_eq!(error.value.as_deref(), Some("20"));
    assert_eq!(error.origin, Some(format!("file {}", toml.display())));
    assert_eq!(error.fix, "did you mean `max_connections`? known here: url, max_connections");

    let error = load(&[("WAYBILL_DATABSE__URL", "x")]).expect_err("unknown");
    assert_eq!(error.key.as_deref(), Some("databse"));
    assert!(error.origin.as_deref().is_some_and(|origin| origin.ends_with("WAYBILL_DATABSE__URL")), "{error}");
    assert!(error.fix.starts_with("did you mean `database`?"), "{error}");
}

#[test]
fn an_unknown_choice_lists_the_choices() {
    let error = load(&[("WAYBILL_PROVIDER__KIND", "opnai")]).expect_err("unknown");
    assert_eq!(error.key.as_deref(), Some("provider.kind"));
    assert_eq!(error.fix, "did you mean `openai`? choose from: local, openai");
}

#[test]
fn files_that_are_missing_or_broken_are_named() {
    let error = loader(&[]).toml_file(Some(Path::new("/nowhere/waybill.toml"))).load::<Config>().expect_err("missing");
    assert_eq!(
        error.to_string(),
        "configuration: file /nowhere/waybill.toml: there is no such file; create it, or leave it out"
    );
    let dir = tempfile::tempdir().expect("dir");
    let toml = file(&dir, "waybill.toml", "[database\nurl = 1");
    let error = loader(&[]).toml_file(Some(&toml)).load::<Config>().expect_err("broken");
    assert!(error.to_string().contains("waybill.toml"), "{error}");
}

#[test]
fn secrets_come_from_files_by_either_way_of_saying_it() {
    let dir = tempfile::tempdir().expect("dir");
    let key = file(&dir, "key", "s3cret\n");
    let path = key.to_str().expect("utf-8");
    let toml = file(&dir, "waybill.toml", &format!("[provider]\napi_key_file = {path:?}"));
    let from_toml: Config = loader(&[]).toml_file(Some(&toml)).load().expect("toml");
    assert_eq!(from_toml.provider.api_key.expose(), "s3cret");
    let overridden: Config =
        loader(&[("WAYBILL_PROVIDER__API_KEY", "42")]).toml_file(Some(&toml)).load().expect("overridden");
    assert_eq!(overridden.provider.api_key.expose(), "42");
    for name in ["WAYBILL_PROVIDER__API_KEY_FILE", "WAYBILL_PROVIDER__API_KEY__FILE"] {
        assert_eq!(load(&[(name, path)]).expect(name).provider.api_key.expose(), "s3cret");
    }
    let url = file(&dir, "url", "postgres://u:p@h/d\n");
    let url = url.to_str().expect("utf-8");
    let config = load(&[("WAYBILL_DATABASE__URL_FILE", url)]).expect("url");
    assert_eq!(config.database.url.expose(), "postgres://u:p@h/d");

    let error = load(&[("WAYBILL_PROVIDER__API_KEY_FILE", "/nowhere/key")]).expect_err("missing");
    assert!(error.to_string().contains("`provider.api_key` = [hidden]"), "{error}");
    assert!(error.to_string().contains("/nowhere/key"), "{error}");
}

#[test]
fn nothing_secret_is_shown() {
    let config = load(&[
        ("WAYBILL_DATABASE__URL", "postgres://waybill:hunter2@db:5432/waybill?sslmode=require&password=hunter2"),
        ("WAYBILL_PROVIDER__API_KEY", "hunter2"),
    ])
    .expect("load");
    let rendered = render_redacted(&config).expect("render");
    assert!(!rendered.contains("hunter2") && !format!("{config:?}").contains("hunter2"), "{rendered}");
    assert!(
        rendered.contains(r#"url = "postgres://waybill:[hidden]@db:5432/waybill?sslmode=require&password=[hidden]""#),
        "{rendered}"
    );
    assert!(rendered.contains(r#"api_key = "[hidden]""#) && rendered.contains("deadline_s = 25"), "{rendered}");

    let url = load(&[("WAYBILL_DATABASE__URL", "waybill:hunter2@db")]).expect_err("no scheme");
    assert!(!url.to_string().contains("hunter2"), "{url}");
    let unknown = load(&[("WAYBILL_DATABASE__PASSWORD", "hunter2")]).expect_err("unknown");
    assert!(!unknown.to_string().contains("hunter2"), "{unknown}");
}

#[test]
fn a_password_with_odd_characters_is_hidden_whole() {
    for url in ["postgres://u:a/b@c@h/d", "postgres://u:a?b@h/d", "redis://:pw@h", "postgres://u:a#@h:1/d?x=1"] {
        let shown = SecretUrl::new(url).to_string();
        assert!(shown.contains(":[hidden]@h"), "{url} -> {shown}");
        assert!(!shown.contains("a/b") && !shown.contains("pw") && !shown.contains("a?b"), "{url} -> {shown}");
    }
    for url in ["http://h:6334", "postgres://u@h/d", ""] {
        assert_eq!(SecretUrl::new(url).to_string(), url);
    }
}

#[test]
fn validation_errors_read_like_the_others() {
    let config = load(&[("WAYBILL_SHUTDOWN__DEADLINE_S", "99999")]).expect("load");
    let error = config.shutdown.validate("shutdown").expect_err("too long");
    assert_eq!(
        error.to_string(),
        "configuration: `shutdown.deadline_s` = 99999: is over an hour; write 3600 or less, in seconds"
    );
}
