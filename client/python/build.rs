//! On macOS a library says which symbols it expects of the program that loads it.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
