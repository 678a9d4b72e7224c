//! Vectors, checked against the collection before the engine sees them: the
//! engine would find a wrong dimension only after it has taken the points
//! before it.

use std::collections::HashMap;

use qdrant_client::qdrant as proto;
use qdrant_client::qdrant::vector::Vector as ProtoVector;
use qdrant_client::qdrant::{vector_input, vector_output, vectors, vectors_output, with_vectors_selector};
use qdrant_edge::{
    DEFAULT_VECTOR_NAME, SparseVector, Vector, VectorInternal, VectorPersisted, VectorStructInternal,
    VectorStructPersisted, WithVector,
};

use crate::error::Error;
use crate::manifest::CollectionSpec;

/// Converts the vectors of a point. A point may lack some of the collection's
/// vectors, but may not bring others.
pub(crate) fn to_engine(
    spec: &CollectionSpec,
    vectors: Option<proto::Vectors>,
) -> Result<VectorStructPersisted, Error> {
    let named: HashMap<String, proto::Vector> = match vectors.and_then(|vectors| vectors.vectors_options) {
        None => HashMap::new(),
        Some(vectors::VectorsOptions::Vector(vector)) => HashMap::from([(DEFAULT_VECTOR_NAME.to_owned(), vector)]),
        Some(vectors::VectorsOptions::Vectors(named)) => named.vectors,
    };
    let named = named.into_iter().map(|(name, vector)| {
        let vector = persisted(spec, &name, vector)?;
        Ok((name, vector))
    });
    Ok(VectorStructPersisted::Named(named.collect::<Result<_, Error>>()?))
}

/// Converts the vector of a query against the vector called `using`.
pub(crate) fn query(spec: &CollectionSpec, using: &str, input: proto::VectorInput) -> Result<VectorInternal, Error> {
    let variant = input.variant.ok_or_else(|| Error::invalid("VectorInput is malformed"))?;
    match variant {
        vector_input::Variant::Dense(dense) => {
            check_dense(spec, using, dense.data.len())?;
            Ok(VectorInternal::Dense(dense.data))
        }
        vector_input::Variant::Sparse(vector) => {
            check_sparse(spec, using)?;
            Ok(VectorInternal::Sparse(sparse(vector.indices, vector.values)?))
        }
        vector_input::Variant::Id(_) => Err(Error::unimplemented("VectorInput.id")),
        vector_input::Variant::MultiDense(_) => Err(Error::unimplemented("VectorInput.multi_dense")),
        vector_input::Variant::Document(_) => Err(Error::unimplemented("VectorInput.document")),
        vector_input::Variant::Image(_) => Err(Error::unimplemented("VectorInput.image")),
        vector_input::Variant::Object(_) => Err(Error::unimplemented("VectorInput.object")),
    }
}

/// Converts a vector selector; `None` means the API's default, which is none.
pub(crate) fn selector(
    spec: &CollectionSpec,
    selector: Option<proto::WithVectorsSelector>,
) -> Result<WithVector, Error> {
    match selector.and_then(|selector| selector.selector_options) {
        None => Ok(WithVector::Bool(false)),
        Some(with_vectors_selector::SelectorOptions::Enable(enable)) => Ok(WithVector::Bool(enable)),
        Some(with_vectors_selector::SelectorOptions::Include(include)) => {
            for name in &include.names {
                if !spec.dense.contains_key(name) && !spec.sparse.contains_key(name) {
                    return Err(unknown_name(name));
                }
            }
            Ok(WithVector::Selector(include.names))
        }
    }
}

/// Converts the vectors of a stored point.
pub(crate) fn to_proto(vectors: VectorStructInternal) -> proto::VectorsOutput {
    let options = match vectors {
        VectorStructInternal::Single(data) => {
            vectors_output::VectorsOptions::Vector(output(VectorInternal::Dense(data)))
        }
        VectorStructInternal::MultiDense(multi) => {
            vectors_output::VectorsOptions::Vector(output(VectorInternal::MultiDense(multi)))
        }
        VectorStructInternal::Named(named) => {
            let vectors = named.into_iter();
            vectors_output::VectorsOptions::Vectors(proto::NamedVectorsOutput {
                vectors: vectors.map(|(name, vector)| (name, output(vector))).collect(),
            })
        }
    };
    proto::VectorsOutput { vectors_options: Some(options) }
}

fn output(vector: VectorInternal) -> proto::VectorOutput {
    let vector = match vector {
        VectorInternal::Dense(data) => vector_output::Vector::Dense(proto::DenseVector { data }),
        VectorInternal::Sparse(sparse) => {
            vector_output::Vector::Sparse(proto::SparseVector { values: sparse.values, indices: sparse.indices })
        }
        VectorInternal::MultiDense(multi) => {
            let rows = multi.flattened_vectors.chunks(multi.dim);
            let vectors = rows.map(|row| proto::DenseVector { data: row.to_vec() });
            vector_output::Vector::MultiDense(proto::MultiDenseVector { vectors: vectors.collect() })
        }
    };
    proto::VectorOutput { vector: Some(vector), ..proto::VectorOutput::default() }
}

fn persisted(spec: &CollectionSpec, name: &str, vector: proto::Vector) -> Result<VectorPersisted, Error> {
    match modern(vector) {
        ProtoVector::Dense(dense) => {
            check_dense(spec, name, dense.data.len())?;
            Ok(VectorPersisted::Dense(dense.data))
        }
        ProtoVector::Sparse(vector) => {
            check_sparse(spec, name)?;
            Ok(VectorPersisted::Sparse(sparse(vector.indices, vector.values)?))
        }
        ProtoVector::MultiDense(_) => Err(Error::unimplemented("Vector.multi_dense")),
        ProtoVector::Document(_) => Err(Error::unimplemented("Vector.document")),
        ProtoVector::Image(_) => Err(Error::unimplemented("Vector.image")),
        ProtoVector::Object(_) => Err(Error::unimplemented("Vector.object")),
    }
}

#[expect(deprecated, reason = "clients still send the flat form that came before the oneof")]
fn modern(vector: proto::Vector) -> ProtoVector {
    let proto::Vector { data, indices, vectors_count, vector } = vector;
    match (vector, indices) {
        (Some(vector), _) => vector,
        (None, Some(indices)) => ProtoVector::Sparse(proto::SparseVector { values: data, indices: indices.data }),
        (None, None) if vectors_count.is_some() => ProtoVector::MultiDense(proto::MultiDenseVector::default()),
        (None, None) => ProtoVector::Dense(proto::DenseVector { data }),
    }
}

fn check_dense(spec: &CollectionSpec, name: &str, size: usize) -> Result<(), Error> {
    if spec.sparse.contains_key(name) {
        return Err(Error::invalid(format!(
            "Conversion between sparse and regular vectors failed: vector `{name}` is sparse"
        )));
    }
    let dense = spec.dense.get(name).ok_or_else(|| unknown_name(name))?;
    if dense.size != size {
        return Err(Error::invalid(format!("Vector dimension error: expected dim: {}, got {size}", dense.size)));
    }
    Ok(())
}

fn check_sparse(spec: &CollectionSpec, name: &str) -> Result<(), Error> {
    if spec.dense.contains_key(name) {
        return Err(Error::invalid(format!(
            "Conversion between sparse and regular vectors failed: vector `{name}` is dense"
        )));
    }
    if !spec.sparse.contains_key(name) {
        return Err(unknown_name(name));
    }
    Ok(())
}

/// Checks that indices are unique and as many as values.
fn sparse(indices: Vec<u32>, values: Vec<f32>) -> Result<SparseVector, Error> {
    match Vector::new_sparse(indices, values)?.0 {
        VectorInternal::Sparse(sparse) => Ok(sparse),
        VectorInternal::Dense(_) | VectorInternal::MultiDense(_) => Err(Error::invalid("malformed sparse vector")),
    }
}

fn unknown_name(name: &str) -> Error {
    Error::invalid(format!("Not existing vector name error: {name}"))
}
