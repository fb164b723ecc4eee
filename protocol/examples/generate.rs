//! Writes what follows from `proto/v1`: the generated code, and a lock line for each new field.
//!
//! `cargo run -p umbel-protocol --example generate`

#[path = "generate/codegen.rs"]
mod codegen;

use std::fs;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = codegen::compile()?;
    fs::write(codegen::generated_path(), codegen::generate(descriptors.clone())?)?;
    let path = codegen::lock_path();
    let mut lock = fs::read_to_string(&path).unwrap_or_default();
    for line in codegen::fields(&descriptors) {
        if !lock.lines().any(|locked| locked == line) {
            lock.push_str(&line);
            lock.push('\n');
        }
    }
    fs::write(path, lock)?;
    Ok(())
}
