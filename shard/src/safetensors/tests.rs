//! Headers of real and broken files.

use proptest::prelude::*;

use super::*;
use crate::weight::WeightType;

/// A file with this header and `data` bytes of zeros behind it.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(header: &str, data: usize) -> Result<SafetensorsHeader, SafetensorsError> {
    let bytes = file(header, data);
    parse_header(&bytes, bytes.len() as u64)
}

const TWO: &str = r#"{"__metadata__":{"format":"pt"},
    "a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
    "b":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}"#;

#[test]
fn tensors_are_found_where_they_are() {
    let header = parse(TWO, 32).unwrap();
    let start = 8 + TWO.len() as u64;
    let a = &header.tensors()["a"];
    assert_eq!(a.stored_type, StoredType::Supported(WeightType::F32));
    assert_eq!((&a.shape[..], a.offset, a.bytes), (&[2, 3][..], start, 24));
    let b = &header.tensors()["b"];
    assert_eq!(b.stored_type, StoredType::Other("I64".into()));
    assert_eq!(header.tensors().len(), 2);
}

#[test]
fn a_file_of_another_length_is_cut_off_or_corrupt() {
    assert!(matches!(parse(TWO, 31), Err(SafetensorsError::CutOff { .. })));
    assert!(matches!(parse(TWO, 33), Err(SafetensorsError::TooLong { .. })));
    let bytes = file(TWO, 32);
    for length in 0..bytes.len() {
        assert!(parse_header(&bytes[..length], length as u64).is_err(), "{length} bytes");
    }
}

#[test]
fn lying_headers_are_refused() {
    let long = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    assert!(matches!(parse_header(&long, 10), Err(SafetensorsError::HeaderTooLong { .. })));
    let short = [&100u64.to_le_bytes()[..], b"{}"].concat();
    assert!(matches!(parse_header(&short, 10), Err(SafetensorsError::CutOff { .. })));
    // A file that is claimed to be longer than the bytes at hand.
    assert!(matches!(parse_header(&short, 1000), Err(SafetensorsError::CutOff { .. })));
    let one = |shape: &str, offsets: &str| {
        let header =
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
        parse(&header, 8).unwrap_err()
    };
    assert!(matches!(one("[3]", "[0,8]"), SafetensorsError::Length { .. }));
    assert!(matches!(one("[2]", "[4,12]"), SafetensorsError::Range { .. }));
    assert!(matches!(one("[2]", "[8,0]"), SafetensorsError::Range { .. }));
    assert!(matches!(one("[2]", "[0,18446744073709551615]"), SafetensorsError::CutOff { .. }));
    let huge = "[18446744073709551615,18446744073709551615]";
    assert!(matches!(one(huge, "[0,8]"), SafetensorsError::Length { .. }));
    assert!(matches!(one("[1,1,1,1,1,1,1,1,2]", "[0,8]"), SafetensorsError::Dimensions { .. }));
    assert!(matches!(one("[-2]", "[0,8]"), SafetensorsError::Json(_)));
}

#[test]
fn tensors_share_no_bytes_and_no_names() {
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert!(matches!(parse(overlap, 8), Err(SafetensorsError::Range { .. })));
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let SafetensorsError::Json(error) = parse(twice, 8).unwrap_err() else { panic!() };
    assert!(error.to_string().contains("twice"), "{error}");
}

#[test]
fn an_index_names_only_weight_files_beside_it() {
    let index = |file: &str| {
        let json = serde_json::json!({"metadata": {}, "weight_map": {"a": file}});
        WeightIndex::from_json(&json.to_string())
    };
    let name = "model-00001-of-00002.safetensors";
    assert_eq!(index(name).unwrap().file_of("a"), Some(name));
    for name in [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/model.safetensors",
        "a\\model.safetensors",
        "C:model.safetensors",
        "model.safetensors\0",
        ".safetensors",
        "",
        "config.json",
        "model.safetensors?x=.safetensors",
    ] {
        assert!(matches!(index(name), Err(IndexError::FileName { .. })), "{name}");
    }
    assert!(matches!(WeightIndex::from_json("[]"), Err(IndexError::Json(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn perturbed_files_never_panic(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        claimed in any::<u64>(),
    ) {
        let mut bytes = file(TWO, 32);
        for (place, byte) in places {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _ = parse_header(&bytes, bytes.len() as u64);
        let _ = parse_header(&bytes, claimed);
    }

    #[test]
    fn every_tensor_that_is_read_lies_in_the_file(
        start in 0u64..16, end in 0u64..32, size in 0u64..8, data in 0usize..32,
    ) {
        let header = format!(
            r#"{{"a":{{"dtype":"F16","shape":[{size}],"data_offsets":[{start},{end}]}}}}"#
        );
        let bytes = file(&header, data);
        if let Ok(header) = parse_header(&bytes, bytes.len() as u64) {
            let tensor = &header.tensors()["a"];
            prop_assert_eq!(tensor.bytes, 2 * size);
            prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
        }
    }
}
