use std::path::{Path, PathBuf};

use serde::Deserialize;
use waybill_domain::ErrorClass;
use waybill_models::{EmbeddingProvider, LocalConfig, ModelError, ModelFormat, ProviderConfig, Purpose, build};

/// What the reference implementations made of `sentences.json`; see `reference/make.py`.
#[derive(Deserialize)]
struct Reference {
    minilm: Vec<Vec<f32>>,
    wordllama: Vec<Vec<f32>>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("reference/vectors.json")).unwrap()
}

/// The committed sentences and the long one that `make.py` puts behind them.
fn sentences() -> Vec<String> {
    let mut texts: Vec<String> = serde_json::from_str(include_str!("reference/sentences.json")).unwrap();
    let rows = (0..32)
        .map(|number| format!("Row {number} was written at noon, and vacuum came by before the reader had seen it."));
    texts.push(rows.collect::<Vec<_>>().join(" "));
    texts
}

fn models_dir() -> PathBuf {
    std::env::var_os("WAYBILL_MODELS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models"), PathBuf::from)
}

/// Finds a fetched model. A missing one fails the test: a skip would look like a pass.
fn model(name: &str) -> PathBuf {
    let path = models_dir().join(name);
    assert!(path.is_dir(), "{} is missing: run `cargo xtask fetch-models` first", path.display());
    path
}

fn local(path: PathBuf) -> ProviderConfig {
    let local = LocalConfig { path, threads: 2, ..LocalConfig::default() };
    ProviderConfig { local, ..ProviderConfig::default() }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Embeds the sentences and returns the lowest cosine to the expected vectors.
async fn lowest_cosine(provider: &dyn EmbeddingProvider, expected: &[Vec<f32>]) -> f64 {
    let texts = sentences();
    assert_eq!(texts.len(), expected.len(), "run reference/make.py again");
    let vectors = provider.embed(&texts, Purpose::Document).await.unwrap();
    assert_eq!(vectors.len(), texts.len());
    let mut lowest: f64 = 1.0;
    for (vector, expected) in vectors.iter().zip(expected) {
        assert_eq!(vector.len(), expected.len());
        lowest = lowest.min(cosine(vector, expected));
    }
    lowest
}

#[tokio::test]
async fn minilm_agrees_with_the_reference() {
    let provider = build(&local(model("minilm"))).await.unwrap();
    let info = provider.info();
    assert_eq!((info.provider, info.dimensions, info.max_tokens), ("local", 384, 256));
    assert!(info.name.starts_with("minilm-"), "{}", info.name);
    let lowest = lowest_cosine(provider.as_ref(), &reference().minilm).await;
    assert!(lowest >= 0.999, "lowest cosine {lowest}");
}

#[tokio::test]
async fn minilm_int8_agrees_with_the_reference() {
    model("onnxruntime");
    let provider = build(&local(model("minilm-int8"))).await.unwrap();
    assert_eq!((provider.info().dimensions, provider.info().max_tokens), (384, 256));
    let lowest = lowest_cosine(provider.as_ref(), &reference().minilm).await;
    assert!(lowest >= 0.99, "lowest cosine {lowest}");
}

#[tokio::test]
async fn wordllama_agrees_with_the_reference() {
    let provider = build(&local(model("wordllama"))).await.unwrap();
    assert_eq!(provider.info().dimensions, 256);
    let lowest = lowest_cosine(provider.as_ref(), &reference().wordllama).await;
    assert!(lowest >= 0.999, "lowest cosine {lowest}");
}

#[tokio::test]
async fn a_text_gets_the_same_vector_alone_and_among_others() {
    model("onnxruntime");
    for name in ["minilm", "minilm-int8", "wordllama"] {
        let provider = build(&local(model(name))).await.unwrap();
        let texts = sentences();
        let together = provider.embed(&texts, Purpose::Document).await.unwrap();
        for (text, vector) in texts.iter().zip(&together) {
            let alone = provider.embed(std::slice::from_ref(text), Purpose::Document).await;
            let cosine = cosine(&alone.unwrap()[0], vector);
            assert!(cosine > 0.999_99, "{name}: cosine {cosine}");
        }
    }
}

#[tokio::test]
async fn empty_input_makes_no_vectors_and_empty_text_a_finite_one() {
    for name in ["minilm", "wordllama"] {
        let provider = build(&local(model(name))).await.unwrap();
        assert!(provider.embed(&[], Purpose::Query).await.unwrap().is_empty());
        let vectors = provider.embed(&[String::new()], Purpose::Query).await.unwrap();
        assert_eq!(vectors[0].len(), provider.info().dimensions);
        assert!(vectors[0].iter().all(|value| value.is_finite()));
    }
}

#[tokio::test]
async fn more_batches_than_the_queue_holds_all_come_back_in_order() {
    let mut config = local(model("wordllama"));
    config.local.batch = 2;
    config.local.queue = 1;
    let provider = build(&config).await.unwrap();
    let texts: Vec<String> = (0..300).map(|number| format!("text number {number}")).collect();
    let vectors = provider.embed(&texts, Purpose::Document).await.unwrap();
    for place in [0, 7, 150, 299] {
        let alone = provider.embed(&texts[place..=place], Purpose::Document).await.unwrap();
        assert_eq!(alone[0], vectors[place]);
    }
}

#[tokio::test]
async fn prefixes_change_the_vector_by_purpose_and_the_name() {
    let plain = build(&local(model("wordllama"))).await.unwrap();
    let mut config = local(model("wordllama"));
    config.local.query_prefix = "query: ".to_owned();
    let prefixed = build(&config).await.unwrap();
    assert_ne!(plain.info().name, prefixed.info().name);
    let text = ["vacuum".to_owned()];
    let with_prefix = prefixed.embed(&text, Purpose::Query).await.unwrap();
    let by_hand = plain.embed(&["query: vacuum".to_owned()], Purpose::Document).await.unwrap();
    assert_eq!(with_prefix, by_hand);
    let document = prefixed.embed(&text, Purpose::Document).await.unwrap();
    assert_eq!(document, plain.embed(&text, Purpose::Document).await.unwrap());
}

#[tokio::test]
async fn a_lower_limit_reads_less() {
    let mut config = local(model("minilm"));
    config.local.max_tokens = Some(8);
    let provider = build(&config).await.unwrap();
    let texts = ["one two three four five six", "one two three four five six seven eight nine"].map(str::to_owned);
    let vectors = provider.embed(&texts, Purpose::Document).await.unwrap();
    assert_eq!(vectors[0], vectors[1]);
}

async fn load_problem(config: &ProviderConfig) -> String {
    let Err(error) = build(config).await else { panic!("the model loaded") };
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(matches!(error, ModelError::Load { .. }), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn a_folder_that_is_no_model_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let missing = load_problem(&local(dir.path().join("nowhere"))).await;
    assert!(missing.contains("nowhere") && missing.contains("local.path"), "{missing}");

    let empty = load_problem(&local(dir.path().to_owned())).await;
    assert!(empty.contains("neither model.safetensors nor model.onnx"), "{empty}");

    std::fs::write(dir.path().join("model.safetensors"), b"not a model").unwrap();
    let untokenized = load_problem(&local(dir.path().to_owned())).await;
    assert!(untokenized.contains("tokenizer.json"), "{untokenized}");

    let tokenizer = model("wordllama").join("tokenizer.json");
    std::fs::copy(tokenizer, dir.path().join("tokenizer.json")).unwrap();
    let garbage = load_problem(&local(dir.path().to_owned())).await;
    assert!(garbage.contains("no safetensors file"), "{garbage}");

    std::fs::write(dir.path().join("model.onnx"), b"").unwrap();
    let ambiguous = load_problem(&local(dir.path().to_owned())).await;
    assert!(ambiguous.contains("local.format"), "{ambiguous}");
}

#[tokio::test]
async fn a_bert_without_its_config_is_told_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(model("minilm").join(file), dir.path().join(file)).unwrap();
    }
    let problem = load_problem(&local(dir.path().to_owned())).await;
    assert!(problem.contains("config.json"), "{problem}");

    let mut config = local(dir.path().to_owned());
    config.local.format = Some(ModelFormat::Bert);
    assert!(load_problem(&config).await.contains("config.json"));

    let settings = std::fs::read_to_string(model("minilm").join("config.json")).unwrap();
    let settings = settings.replace("\"model_type\": \"bert\"", "\"model_type\": \"roberta\"");
    std::fs::write(dir.path().join("config.json"), settings).unwrap();
    let problem = load_problem(&config).await;
    assert!(problem.contains("roberta"), "{problem}");
}
