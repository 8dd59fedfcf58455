//! Every algorithm by name and by number.

use crate::dense::Dense;
use crate::shadowkv::ShadowKv;
use crate::sketch::{self, Sketch};
use crate::{Algorithm, AlgorithmSpec};
use backend::{AlgorithmId, AlgorithmSet, Backend, BackendError};
use kv::Geometry;

/// The algorithms of one model on one backend; a lane's [`AlgorithmId`] is a place in it.
pub struct Algorithms {
    list: Vec<Box<dyn Algorithm>>,
}

/// A name that no algorithm has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownAlgorithm {
    /// As given.
    pub name: String,
    /// Those there are.
    pub known: Vec<&'static str>,
}

impl std::fmt::Display for UnknownAlgorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unknown attention algorithm '{}': this model has {}", self.name, self.known.join(", "))
    }
}

impl std::error::Error for UnknownAlgorithm {}

impl Algorithms {
    /// Dense is always the first.
    pub const DENSE: AlgorithmId = AlgorithmId(0);

    /// The algorithms that a model's geometry allows: sketch frames need a head_dim of 48 or more.
    ///
    /// # Errors
    /// No memory for the rotations.
    pub fn new(backend: &dyn Backend, geometry: Geometry) -> Result<Self, BackendError> {
        let mut list: Vec<Box<dyn Algorithm>> =
            vec![Box::new(Dense::new()), Box::new(ShadowKv::new()), Box::new(ShadowKv::with_estimate())];
        if 48 <= geometry.head_dim {
            list.push(Box::new(Sketch::new(sketch::default_rotations(backend, geometry)?)));
        }
        Ok(Algorithms { list })
    }

    /// The algorithm called `name`.
    ///
    /// # Errors
    /// None is called so.
    pub fn by_name(&self, name: &str) -> Result<AlgorithmId, UnknownAlgorithm> {
        let found = self.list.iter().position(|a| a.spec().name == name);
        let unknown = || UnknownAlgorithm { name: name.to_string(), known: self.names() };
        found.map(|i| AlgorithmId(i as u8)).ok_or_else(unknown)
    }

    /// Their names, by number.
    pub fn names(&self) -> Vec<&'static str> {
        self.list.iter().map(|a| a.spec().name).collect()
    }

    /// One of them.
    pub fn get(&self, id: AlgorithmId) -> &dyn Algorithm {
        self.list[usize::from(id.0)].as_ref()
    }

    /// One's constants.
    pub fn spec(&self, id: AlgorithmId) -> &AlgorithmSpec {
        self.get(id).spec()
    }

    /// Those of a set, ascending.
    pub fn of(&self, set: AlgorithmSet) -> impl Iterator<Item = (AlgorithmId, &dyn Algorithm)> {
        let all = self.list.iter().enumerate().map(|(i, a)| (AlgorithmId(i as u8), a.as_ref()));
        all.filter(move |(id, _)| set.contains(*id))
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (AlgorithmId, &dyn Algorithm)> {
        self.list.iter().enumerate().map(|(i, a)| (AlgorithmId(i as u8), a.as_ref()))
    }
}
