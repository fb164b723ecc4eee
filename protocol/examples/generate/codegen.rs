//! From the `.proto` files to Rust and to lock lines, with neither `protoc` nor a build script.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// The first lines of the generated file.
const PREAMBLE: &str = "//! Wire types, generated from `proto/v1` by `examples/generate.rs`.\n\n";

/// Reads and checks every file under `proto/v1`.
pub(crate) fn compile() -> Result<FileDescriptorSet, Box<dyn Error>> {
    let folder = root().join("proto/v1");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();
    Ok(protox::compile(files, [folder])?)
}

/// The Rust code of all messages.
pub(crate) fn generate(descriptors: FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    prost_build::Config::new().bytes(["."]).out_dir(folder.path()).compile_fds(descriptors)?;
    Ok(PREAMBLE.to_owned() + &fs::read_to_string(folder.path().join("umbel.v1.rs"))?)
}

/// One line for each field of each message and each value of each enum.
pub(crate) fn fields(descriptors: &FileDescriptorSet) -> Vec<String> {
    let mut lines = Vec::new();
    for file in &descriptors.file {
        for message in &file.message_type {
            let line = |field: &FieldDescriptorProto| {
                format!("{} {} {} {}", message.name(), field.number(), field.name(), kind(field))
            };
            lines.extend(message.field.iter().map(line));
        }
        for wire_enum in &file.enum_type {
            let line = |value: &prost_types::EnumValueDescriptorProto| {
                format!("{} {} {} value", wire_enum.name(), value.number(), value.name())
            };
            lines.extend(wire_enum.value.iter().map(line));
        }
    }
    lines.sort();
    lines
}

/// Whether `message` keeps both the number and the name of a removed field from being used again.
#[allow(dead_code, reason = "the example does not ask")]
pub(crate) fn is_reserved(message: &DescriptorProto, number: i32, name: &str) -> bool {
    let number_is = message.reserved_range.iter().any(|r| r.start() <= number && number < r.end());
    number_is && message.reserved_name.iter().any(|reserved| reserved == name)
}

/// Where the generated code is kept.
pub(crate) fn generated_path() -> PathBuf {
    root().join("src/generated/umbel.v1.rs")
}

/// Where the released fields are kept.
pub(crate) fn lock_path() -> PathBuf {
    root().join("proto/v1.lock")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn kind(field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        _ if field.proto3_optional() => "optional ",
        Label::Optional | Label::Required => "",
    };
    let kind = match field.type_name() {
        "" => field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        name => name.trim_start_matches('.').to_owned(),
    };
    format!("{label}{kind}")
}
