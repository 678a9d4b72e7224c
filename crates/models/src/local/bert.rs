use std::{ops::Range, sync::Arc};

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, concatenate, linalg::general_mat_mul};
use serde::Deserialize;

use super::{
    Encoder,
    folder::{ModelFolder, Pooling, load_error, read, read_json},
    pooling::{add, pool},
    weights::Weights,
};
use crate::ModelError;

/// About how many tokens go through the layers together. Enough rows for the matrix
/// products to run at full speed; few enough for what lies between two of them to stay in
/// the processor's cache.
const TOKENS_PER_PASS: usize = 1_024;

/// The parts of `config.json` that the computation depends on.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_act: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    max_position_embeddings: usize,
    layer_norm_eps: f32,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

/// A BERT encoder with its pooling.
///
/// Texts of a pass lie one after another in one matrix, a row for each token: no padding
/// is computed, and only attention has to know where a text begins and ends. So a text's
/// vector does not depend on what it is embedded with.
pub(super) struct Bert {
    words: Array2<f32>,
    positions: Array2<f32>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
    pooling: Pooling,
}

struct Layer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

/// `x * weight^T + bias`, with the weight stored as outputs by inputs.
struct Linear {
    weight: Array2<f32>,
    bias: Array1<f32>,
}

/// Layer normalisation.
struct Norm {
    scale: Array1<f32>,
    shift: Array1<f32>,
    epsilon: f32,
}

impl Bert {
    /// Loads `config.json` and `model.safetensors`.
    pub(super) fn load(folder: &ModelFolder, max_tokens: usize) -> Result<Self, ModelError> {
        let config_path = folder.config_path();
        let config: Config = read_json(&config_path)?;
        config.check(max_tokens).map_err(|problem| load_error(&config_path, problem))?;
        let path = folder.weights_path();
        let bytes = read(&path)?;
        let weights = Weights::parse(&path, &bytes)?;
        // A model saved with a head keeps its encoder under a name of its own.
        let bare = weights.has("embeddings.word_embeddings.weight");
        let loader = Loader { weights, prefix: if bare { "" } else { "bert." }, config };
        loader.load(folder.pooling()?)
    }

    pub(super) fn dimensions(&self) -> usize {
        self.words.ncols()
    }

    /// Runs texts through the layers together: one vector for each.
    fn forward(&self, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
        let mut rows = 0;
        let spans: Vec<Range<usize>> = texts
            .iter()
            .map(|ids| {
                rows += ids.len();
                rows - ids.len()..rows
            })
            .collect();
        let mut hidden = self.embed(texts, rows);
        for layer in &self.layers {
            hidden = layer.forward(hidden, &spans, self.heads);
        }
        let width = self.dimensions();
        spans
            .into_iter()
            .map(|span| {
                let rows = part(&hidden, span, 0..width);
                pool(rows.as_slice().unwrap_or_default(), width, self.pooling)
            })
            .collect()
    }

    fn embed(&self, texts: &[Vec<u32>], rows: usize) -> Array2<f32> {
        let mut hidden = Array2::zeros((rows, self.dimensions()));
        let last = self.words.nrows() - 1;
        let places = texts.iter().flat_map(|ids| ids.iter().enumerate());
        for (mut row, (position, &id)) in hidden.rows_mut().into_iter().zip(places) {
            row += &self.words.row((id as usize).min(last));
            row += &self.positions.row(position);
        }
        self.embedding_norm.apply(&mut hidden);
        hidden
    }
}

impl Layer {
    fn forward(&self, hidden: Array2<f32>, spans: &[Range<usize>], heads: usize) -> Array2<f32> {
        let query_key_value = self.query_key_value.apply(&hidden.view());
        let context = attention(&query_key_value, spans, heads);
        let mut hidden = hidden + self.attention_output.apply(&context.view());
        self.attention_norm.apply(&mut hidden);
        let mut inner = self.intermediate.apply(&hidden.view());
        inner.as_slice_mut().into_iter().flatten().for_each(|value| *value = gelu(*value));
        let mut hidden = hidden + self.output.apply(&inner.view());
        self.output_norm.apply(&mut hidden);
        hidden
    }
}

/// Lets the tokens of each text look at each other. `query_key_value` has the three side
/// by side in each row; the queries come scaled.
fn attention(query_key_value: &Array2<f32>, spans: &[Range<usize>], heads: usize) -> Array2<f32> {
    let width = query_key_value.ncols() / 3;
    let head_width = width / heads;
    let mut context = Array2::zeros((query_key_value.nrows(), width));
    for span in spans {
        for head in 0..heads {
            let begin = head * head_width;
            let third = |number: usize| {
                let begin = number * width + begin;
                part(query_key_value, span.clone(), begin..begin + head_width)
            };
            let mut scores = third(0).dot(&third(1).t());
            for mut row in scores.rows_mut() {
                softmax(row.as_slice_mut().unwrap_or_default());
            }
            let mut target = part_mut(&mut context, span.clone(), begin..begin + head_width);
            general_mat_mul(1.0, &scores, &third(2), 0.0, &mut target);
        }
    }
    context
}

/// Looks at some rows and columns. (The `s!` macro would bring unsafe code in.)
fn part(matrix: &Array2<f32>, rows: Range<usize>, columns: Range<usize>) -> ArrayView2<'_, f32> {
    let mut view = matrix.view();
    view.slice_axis_inplace(Axis(0), rows.into());
    view.slice_axis_inplace(Axis(1), columns.into());
    view
}

fn part_mut(matrix: &mut Array2<f32>, rows: Range<usize>, columns: Range<usize>) -> ArrayViewMut2<'_, f32> {
    let mut view = matrix.view_mut();
    view.slice_axis_inplace(Axis(0), rows.into());
    view.slice_axis_inplace(Axis(1), columns.into());
    view
}

impl Linear {
    fn apply(&self, input: &ArrayView2<'_, f32>) -> Array2<f32> {
        let mut output = input.dot(&self.weight.t());
        if let (Some(rows), Some(bias)) = (output.as_slice_mut(), self.bias.as_slice()) {
            rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
        }
        output
    }
}

impl Norm {
    fn apply(&self, hidden: &mut Array2<f32>) {
        let parts = (hidden.as_slice_mut(), self.scale.as_slice(), self.shift.as_slice());
        let (Some(rows), Some(scale), Some(shift)) = parts else {
            return;
        };
        let width = scale.len();
        for row in rows.chunks_exact_mut(width) {
            let mean = row.iter().sum::<f32>() / width as f32;
            let variance = row.iter().map(|value| (value - mean) * (value - mean)).sum::<f32>() / width as f32;
            let factor = 1.0 / (variance + self.epsilon).sqrt();
            for ((value, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
                *value = (*value - mean) * factor * scale + shift;
            }
        }
    }
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    for value in row {
        *value /= sum;
    }
}

/// `x * P(X <= x)` for a standard normal X.
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The error function, within 2e-7: Abramowitz and Stegun, 7.1.26.
fn erf(x: f32) -> f32 {
    const P: f32 = 0.327_591_1;
    const A: [f32; 5] = [0.254_829_6, -0.284_496_72, 1.421_413_8, -1.453_152_1, 1.061_405_4];
    let t = 1.0 / (1.0 + P * x.abs());
    let poly = t * (A[0] + t * (A[1] + t * (A[2] + t * (A[3] + t * A[4]))));
    (1.0 - poly * (-x * x).exp()).copysign(x)
}

impl Config {
    fn check(&self, max_tokens: usize) -> Result<(), String> {
        let require = |ok: bool, problem: String| if ok { Ok(()) } else { Err(problem) };
        let kind = &self.model_type;
        require(kind == "bert", format!("model_type is {kind}; only bert is supported"))?;
        let act = &self.hidden_act;
        require(act == "gelu", format!("hidden_act is {act}; only gelu is supported"))?;
        let position = self.position_embedding_type.as_deref().unwrap_or("absolute");
        require(position == "absolute", format!("position_embedding_type is {position}; only absolute is supported"))?;
        let (heads, width) = (self.num_attention_heads, self.hidden_size);
        require(
            heads > 0 && width > 0 && width.is_multiple_of(heads),
            format!("hidden_size {width} is no multiple of num_attention_heads {heads}"),
        )?;
        let positions = self.max_position_embeddings;
        require(max_tokens <= positions, format!("max_tokens is {max_tokens}, but the model has {positions} positions"))
    }
}

/// Takes the model's parts from the file, under the names that transformers gives them.
struct Loader<'a> {
    weights: Weights<'a>,
    prefix: &'static str,
    config: Config,
}

impl Loader<'_> {
    fn load(&self, pooling: Pooling) -> Result<Bert, ModelError> {
        let width = self.config.hidden_size;
        let words = self.matrix("embeddings.word_embeddings", None, width)?;
        let mut positions =
            self.matrix("embeddings.position_embeddings", Some(self.config.max_position_embeddings), width)?;
        // All tokens are of the first type here, so its vector can be added once and for all.
        let types = self.matrix("embeddings.token_type_embeddings", None, width)?;
        positions += &types.row(0);
        let layers = (0..self.config.num_hidden_layers).map(|number| self.layer(number)).collect::<Result<_, _>>()?;
        Ok(Bert {
            words,
            positions,
            embedding_norm: self.norm("embeddings.LayerNorm")?,
            layers,
            heads: self.config.num_attention_heads,
            pooling,
        })
    }

    fn layer(&self, number: usize) -> Result<Layer, ModelError> {
        let (width, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{number}.{part}");
        Ok(Layer {
            query_key_value: self.query_key_value(&name("attention.self"))?,
            attention_output: self.linear(&name("attention.output.dense"), width, width)?,
            attention_norm: self.norm(&name("attention.output.LayerNorm"))?,
            intermediate: self.linear(&name("intermediate.dense"), inner, width)?,
            output: self.linear(&name("output.dense"), width, inner)?,
            output_norm: self.norm(&name("output.LayerNorm"))?,
        })
    }

    /// Puts the three projections into one, for one large product in place of three, and
    /// scales the queries here rather than each score later.
    fn query_key_value(&self, name: &str) -> Result<Linear, ModelError> {
        let width = self.config.hidden_size;
        let mut query = self.linear(&format!("{name}.query"), width, width)?;
        let key = self.linear(&format!("{name}.key"), width, width)?;
        let value = self.linear(&format!("{name}.value"), width, width)?;
        let scale = ((width / self.config.num_attention_heads) as f32).sqrt().recip();
        query.weight *= scale;
        query.bias *= scale;
        let weights = [query.weight.view(), key.weight.view(), value.weight.view()];
        let biases = [query.bias.view(), key.bias.view(), value.bias.view()];
        let fail = |error| ModelError::Inference(format!("join {name}: {error}"));
        Ok(Linear {
            weight: concatenate(Axis(0), &weights).map_err(fail)?,
            bias: concatenate(Axis(0), &biases).map_err(fail)?,
        })
    }

    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear, ModelError> {
        let weight = self.matrix(name, Some(outputs), inputs)?;
        let bias = self.weights.vector(&format!("{}{name}.bias", self.prefix), outputs)?;
        Ok(Linear { weight, bias })
    }

    fn norm(&self, name: &str) -> Result<Norm, ModelError> {
        let width = self.config.hidden_size;
        let vector = |part: &str| self.weights.vector(&format!("{}{name}.{part}", self.prefix), width);
        Ok(Norm { scale: vector("weight")?, shift: vector("bias")?, epsilon: self.config.layer_norm_eps })
    }

    fn matrix(&self, name: &str, rows: Option<usize>, columns: usize) -> Result<Array2<f32>, ModelError> {
        self.weights.matrix(&format!("{}{name}.weight", self.prefix), rows, Some(columns))
    }
}

/// Runs the model on one thread.
pub(super) struct Runner(Arc<Bert>);

impl Runner {
    pub(super) fn new(model: &Arc<Bert>) -> Self {
        Self(Arc::clone(model))
    }
}

impl Encoder for Runner {
    fn encode(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fitting = rest.iter().take_while(|ids| {
                tokens += ids.len();
                tokens <= TOKENS_PER_PASS
            });
            // A text longer than a pass still goes, alone.
            let count = fitting.count().max(1);
            let (pass, after) = rest.split_at(count);
            vectors.extend(self.0.forward(pass));
            rest = after;
        }
        Ok(vectors)
    }
}
