//! The checks that the fuzz targets share with the ordinary tests.
//!
//! The very file of `umbel-tests`, without the rest of that crate: a build for fuzzing compiles
//! everything anew with instrumentation.

#[path = "../../src/fuzz.rs"]
pub mod checks;
