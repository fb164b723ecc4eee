//! The committed code follows from `proto/v1`, and `proto/v1` only grows.

#[path = "../examples/generate/codegen.rs"]
mod codegen;

use std::fs;

const REGENERATE: &str = "run `cargo run -p umbel-protocol --example generate`";

#[test]
fn the_generated_code_is_current() {
    let current = codegen::generate(codegen::compile().unwrap()).unwrap();
    let committed = fs::read_to_string(codegen::generated_path()).unwrap();
    assert!(current == committed, "src/generated is out of date: {REGENERATE}");
}

#[test]
fn every_released_field_is_still_there_or_reserved() {
    let descriptors = codegen::compile().unwrap();
    let current = codegen::fields(&descriptors);
    let lock = fs::read_to_string(codegen::lock_path()).unwrap();
    for line in lock.lines().filter(|line| !current.iter().any(|field| field == line)) {
        let mut words = line.split(' ');
        let (message, number, name) =
            (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let messages = descriptors.file.iter().flat_map(|file| &file.message_type);
        let reserved = messages
            .filter(|of| of.name() == message)
            .any(|of| codegen::is_reserved(of, number.parse().unwrap(), name));
        assert!(reserved, "{line:?} was released: keep it, or reserve its number and its name");
    }
}

#[test]
fn every_field_is_locked() {
    let lock = fs::read_to_string(codegen::lock_path()).unwrap();
    for field in codegen::fields(&codegen::compile().unwrap()) {
        assert!(lock.lines().any(|line| line == field), "{field:?} is not locked: {REGENERATE}");
    }
}

#[test]
fn no_field_is_required_and_every_enum_begins_unspecified() {
    for file in codegen::compile().unwrap().file {
        for wire_enum in &file.enum_type {
            let first = wire_enum.value.first().unwrap();
            assert!(first.name().ends_with("_UNSPECIFIED"), "{}", wire_enum.name());
            assert_eq!(first.number(), 0, "{}", wire_enum.name());
        }
        let fields = file.message_type.iter().flat_map(|message| &message.field);
        for field in fields {
            let required = prost_types::field_descriptor_proto::Label::Required;
            assert_ne!(field.label(), required, "{}", field.name());
        }
    }
}
