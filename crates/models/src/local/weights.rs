use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{Array1, Array2};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::folder::load_error;
use crate::ModelError;

/// The tensors of a safetensors file, read as 32-bit floats.
pub(super) struct Weights<'a> {
    path: PathBuf,
    tensors: SafeTensors<'a>,
}

impl<'a> Weights<'a> {
    /// Reads the index of `bytes`, the contents of the file at `path`.
    pub(super) fn parse(path: &Path, bytes: &'a [u8]) -> Result<Self, ModelError> {
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|error| load_error(path, format!("is no safetensors file: {error}")))?;
        Ok(Self { path: path.to_owned(), tensors })
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.tensors.names()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// Takes the tensor `name` of one dimension and `len` numbers.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Array1<f32>, ModelError> {
        let tensor = self.tensor(name)?;
        if tensor.shape() != [len] {
            return Err(self.wrong_shape(name, &tensor, &format!("[{len}]")));
        }
        Ok(Array1::from_vec(self.floats(name, &tensor)?))
    }

    /// Takes the tensor `name` of two dimensions; each is checked if given.
    pub(super) fn matrix(
        &self,
        name: &str,
        rows: Option<usize>,
        columns: Option<usize>,
    ) -> Result<Array2<f32>, ModelError> {
        let tensor = self.tensor(name)?;
        let &[got_rows, got_columns] = tensor.shape() else {
            return Err(self.wrong_shape(name, &tensor, "two dimensions"));
        };
        if rows.is_some_and(|rows| rows != got_rows) || columns.is_some_and(|columns| columns != got_columns) {
            return Err(self.wrong_shape(name, &tensor, &format!("{rows:?} by {columns:?}")));
        }
        Array2::from_shape_vec((got_rows, got_columns), self.floats(name, &tensor)?)
            .map_err(|error| load_error(&self.path, format!("tensor {name}: {error}")))
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        self.tensors.tensor(name).map_err(|_missing| load_error(&self.path, format!("has no tensor {name}")))
    }

    fn floats(&self, name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>, ModelError> {
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => Ok(data.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()),
            Dtype::F16 => Ok(data.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()),
            Dtype::BF16 => Ok(data.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect()),
            other => {
                let problem = format!("tensor {name} holds {other:?}, not F32, F16 or BF16");
                Err(load_error(&self.path, problem))
            }
        }
    }

    fn wrong_shape(&self, name: &str, tensor: &TensorView<'_>, expected: &str) -> ModelError {
        let shape = tensor.shape();
        load_error(&self.path, format!("tensor {name} has shape {shape:?}, not {expected}"))
    }
}
