use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use ort::{
    environment::Environment,
    session::{Session, builder::GraphOptimizationLevel},
    value::{Tensor, ValueType},
};

use super::{
    Encoder,
    folder::{ModelFolder, Pooling, load_error},
    pooling::pool,
};
use crate::ModelError;

/// The runtime's state. It allows one for a process, for as long as the process lives.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// What the inputs of a BERT graph are called.
const IDS: &str = "input_ids";
const MASK: &str = "attention_mask";
const TYPES: &str = "token_type_ids";

/// An ONNX graph of a BERT, which gives a vector for each token.
pub(super) struct OnnxModel {
    session: Session,
    output: String,
    dimensions: usize,
    has_types: bool,
    pooling: Pooling,
}

impl OnnxModel {
    /// Loads the graph for one thread. `library` is the ONNX Runtime to load first.
    pub(super) fn load(folder: &ModelFolder, library: Option<&Path>) -> Result<Self, ModelError> {
        let environment = environment(library)?;
        let path = folder.weights_path();
        let session = open(&environment, &path).map_err(|error| load_error(&path, format!("open graph: {error}")))?;
        for input in session.inputs() {
            if ![IDS, MASK, TYPES].contains(&input.name()) {
                let name = input.name();
                return Err(load_error(&path, format!("the graph wants an input {name}")));
            }
        }
        let has_types = session.inputs().iter().any(|input| input.name() == TYPES);
        let Some(output) = session.outputs().first() else {
            return Err(load_error(&path, "the graph has no output"));
        };
        let dimensions = match output.dtype() {
            ValueType::Tensor { shape, .. } if shape.len() == 3 => {
                shape.last().and_then(|&size| usize::try_from(size).ok()).filter(|&size| size > 0)
            }
            _ => None,
        };
        let Some(dimensions) = dimensions else {
            let problem = "the graph's first output is not [batch, tokens, dimensions]";
            return Err(load_error(&path, problem));
        };
        let output = output.name().to_owned();
        Ok(Self { session, output, dimensions, has_types, pooling: folder.pooling()? })
    }

    pub(super) const fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn embed(&mut self, ids: &[u32]) -> ort::Result<Vec<f32>> {
        if ids.is_empty() {
            return Ok(vec![0.0; self.dimensions]);
        }
        let tensor = |values: Vec<i64>| Tensor::from_array(([1, ids.len()], values));
        let mut inputs =
            vec![(IDS, tensor(ids.iter().map(|&id| i64::from(id)).collect())?), (MASK, tensor(vec![1; ids.len()])?)];
        if self.has_types {
            inputs.push((TYPES, tensor(vec![0; ids.len()])?));
        }
        let outputs = self.session.run(inputs)?;
        let (_, rows) = outputs[self.output.as_str()].try_extract_tensor::<f32>()?;
        Ok(pool(rows, self.dimensions, self.pooling))
    }
}

impl Encoder for OnnxModel {
    /// Runs one text at a time. An int8 graph scales its numbers by the largest in the
    /// whole input, so in a batch a text's vector would depend on its neighbours; on one
    /// thread a batch is only a fifth faster, padding not counted.
    fn encode(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        texts
            .iter()
            .map(|ids| self.embed(ids).map_err(|error| ModelError::Inference(format!("run graph: {error}"))))
            .collect()
    }
}

fn open(environment: &Environment, path: &Path) -> ort::Result<Session> {
    let mut builder = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)
        .unwrap_or_else(ort::Error::recover)
        // The pool's threads are the concurrency; a session's own would compete with them.
        .with_intra_threads(1)
        .unwrap_or_else(ort::Error::recover);
    builder.commit_from_file(path)
}

fn environment(library: Option<&Path>) -> Result<Environment, ModelError> {
    let mut environment = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = environment.as_ref() {
        return Ok(environment.clone());
    }
    // Without a path, the system's loader looks for the library by its name.
    let name = library.map_or_else(|| PathBuf::from(library_name()), Path::to_owned);
    let missing = |error: &dyn std::fmt::Display| {
        load_error(
            &name,
            format!(
                "{error}; an ONNX model needs the ONNX Runtime library: install it and set \
                 local.onnxruntime to the file, or choose a safetensors model"
            ),
        )
    };
    let made = ort::init_from(&name)
        .map_err(|error| missing(&error))?
        .with_name("waybill")
        .with_telemetry(false)
        .build()
        .map_err(|error| missing(&error))?;
    *environment = Some(made.clone());
    Ok(made)
}

/// Looks for the library in the places that the configuration documents.
pub(super) fn find_library(configured: Option<&Path>, folder: &Path) -> Option<PathBuf> {
    if let Some(path) = configured {
        return Some(path.to_owned());
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let beside = folder.parent().map(|parent| parent.join("onnxruntime"));
    [Some(folder.to_owned()), beside]
        .into_iter()
        .flatten()
        .map(|place| place.join(library_name()))
        .find(|file| file.is_file())
        // The loader takes a relative path to be relative to the program.
        .map(|file| file.canonicalize().unwrap_or(file))
}

fn library_name() -> String {
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
    format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}")
}
