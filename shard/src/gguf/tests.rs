//! Headers of real and broken files.

use proptest::prelude::*;

use super::write::{GgufWriter, WriteValue};
use super::*;

/// A file with every kind of value and two tensors.
fn file() -> Vec<u8> {
    let mut writer = GgufWriter::new();
    writer
        .value("general.architecture", "llama")
        .value("a.u32", WriteValue::U32(7))
        .value("a.u64", WriteValue::U64(1 << 40))
        .value("a.i32", WriteValue::I32(-3))
        .value("a.f32", WriteValue::F32(0.5))
        .value("a.flag", WriteValue::Flag(true))
        .value("a.texts", WriteValue::Texts(vec!["one".into(), "two".into()]))
        .value("a.floats", WriteValue::F32s(vec![1.5, -2.0]))
        .value("a.numbers", WriteValue::I32s(vec![1, -1]))
        .tensor("x", WeightType::F32, &[3], vec![1; 12])
        .tensor("y", WeightType::Q4_1, &[2, 64], vec![2; 80]);
    writer.to_bytes()
}

/// The header's beginning with these counts of tensors and keys.
fn beginning(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    bytes
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A file of one tensor, whose entry has these numbers, and 64 bytes for it.
fn one_tensor(dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = beginning(3, 1, 0);
    text(&mut bytes, "x");
    bytes.extend(u32::try_from(dimensions.len()).unwrap().to_le_bytes());
    dimensions.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
    bytes
}

#[test]
fn what_is_written_is_read() {
    let header = parse_header(&file()).unwrap();
    let get = |key: &str| header.metadata().get(key).unwrap();
    assert_eq!(header.version(), 3);
    assert_eq!(get("general.architecture").as_text(), Some("llama"));
    assert_eq!(get("a.u32").as_unsigned(), Some(7));
    assert_eq!(get("a.u64").as_unsigned(), Some(1 << 40));
    assert_eq!(get("a.i32"), &Value::Signed(-3));
    assert_eq!(get("a.i32").as_unsigned(), None);
    assert_eq!(get("a.f32").as_float(), Some(0.5));
    assert_eq!(get("a.flag").as_flag(), Some(true));
    let texts = get("a.texts").as_texts().unwrap();
    assert_eq!(texts.iter().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(get("a.floats"), &Value::Array(Array::Floats(vec![1.5, -2.0])));
    assert_eq!(get("a.numbers").as_numbers(), Some(vec![1, -1]));
    let tensor = &header.tensors()["y"];
    assert_eq!((tensor.weight_type, &tensor.shape[..]), (WeightType::Q4_1, &[2, 64][..]));
    let start = usize::try_from(tensor.offset).unwrap();
    assert_eq!(file()[start..], [2; 80]);
}

#[test]
fn every_beginning_of_a_file_is_an_error() {
    let file = file();
    for length in 0..file.len() {
        assert!(parse_header(&file[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn other_files_and_versions_are_named() {
    assert_eq!(parse_header(b"PK\x03\x04 and more"), Err(GgufError::NotGguf));
    let version = |version| parse_header(&beginning(version, 0, 0)).unwrap_err();
    assert_eq!(version(1), GgufError::UnsupportedVersion { version: 1 });
    assert_eq!(version(4), GgufError::UnsupportedVersion { version: 4 });
    assert_eq!(version(3u32.swap_bytes()), GgufError::BigEndian);
    assert!(parse_header(&beginning(2, 0, 0)).is_ok());
}

#[test]
fn claims_that_no_file_can_hold_are_refused_before_anything_is_made_for_them() {
    for (tensors, keys) in [(u64::MAX, 0), (0, u64::MAX), (1 << 40, 1), (60_000, 0), (0, 10_000)] {
        let error = parse_header(&beginning(3, tensors, keys)).unwrap_err();
        let refused = matches!(error, GgufError::TooMany { .. } | GgufError::CutOff { .. });
        assert!(refused, "{tensors} tensors, {keys} keys: {error}");
    }
    // An array of texts that claims more elements than the file has bytes.
    for count in [1 << 20, 1 << 30, u64::MAX] {
        let mut bytes = beginning(3, 0, 1);
        text(&mut bytes, "k");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(8u32.to_le_bytes());
        bytes.extend(u64::to_le_bytes(count));
        bytes.resize(4096, 0);
        assert!(parse_header(&bytes).is_err(), "{count} elements");
    }
    let mut long = beginning(3, 0, 1);
    long.extend(u64::MAX.to_le_bytes());
    assert!(matches!(parse_header(&long), Err(GgufError::CutOff { .. })));
}

#[test]
fn nested_arrays_end() {
    // The first 9 says that the value is an array; each pair after it is one array deeper.
    let mut deep = beginning(3, 0, 1);
    text(&mut deep, "k");
    deep.extend(9u32.to_le_bytes());
    for _ in 0..1000 {
        deep.extend(9u32.to_le_bytes());
        deep.extend(1u64.to_le_bytes());
    }
    assert_eq!(parse_header(&deep), Err(GgufError::TooDeep { key: "k".into() }));
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    assert!(parse_header(&one_tensor(&[16], 0, 0)).is_ok());
    let error = |dimensions: &[u64], kind, offset| {
        parse_header(&one_tensor(dimensions, kind, offset)).unwrap_err()
    };
    assert!(matches!(error(&[17], 0, 0), GgufError::OutOfFile { .. }));
    assert!(matches!(error(&[8], 0, 1 << 60), GgufError::OutOfFile { .. }));
    assert!(matches!(error(&[8], 0, u64::MAX - 31), GgufError::OutOfFile { .. }));
    assert!(matches!(error(&[8], 0, 4), GgufError::Misaligned { .. }));
    assert!(matches!(error(&[u64::MAX, u64::MAX], 0, 0), GgufError::Shape { .. }));
    assert!(matches!(error(&[0], 0, 0), GgufError::Shape { .. }));
    assert!(matches!(error(&[], 0, 0), GgufError::Shape { .. }));
    assert!(matches!(error(&[48], 2, 0), GgufError::Shape { .. }), "a half block of Q4_0");
    assert!(matches!(error(&[1, 1, 1, 1, 1], 0, 0), GgufError::TooMany { .. }));
}

#[test]
fn unsupported_types_are_named() {
    for (kind, name) in [(10, "Q2_K"), (23, "IQ4_XS"), (39, "MXFP4"), (4, "number 4")] {
        let text = parse_header(&one_tensor(&[256], kind, 0)).unwrap_err().to_string();
        assert!(text.contains(name) && text.contains('x'), "{text}");
    }
    assert_eq!(file_type_name(3), Some("Q4_1"));
    assert_eq!(file_type_name(9999), None);
}

#[test]
fn a_name_or_a_byte_is_taken_only_once() {
    let mut twice = GgufWriter::new();
    twice.value("k", WriteValue::U32(1)).value("k", WriteValue::U32(2));
    assert_eq!(parse_header(&twice.to_bytes()), Err(GgufError::Duplicate { name: "k".into() }));
    let mut tensors = GgufWriter::new();
    tensors.tensor("x", WeightType::F32, &[1], vec![0; 4]);
    tensors.tensor("x", WeightType::F32, &[1], vec![0; 4]);
    let twice = parse_header(&tensors.to_bytes());
    assert_eq!(twice, Err(GgufError::Duplicate { name: "x".into() }));

    let mut apart = GgufWriter::new();
    apart.tensor("x", WeightType::F32, &[9], vec![0; 36]);
    apart.tensor("y", WeightType::F32, &[1], vec![0; 4]);
    let mut bytes = apart.to_bytes();
    // The offset is the last field of the header: 64, behind the name, the dimension and the type.
    let place = bytes.windows(8).rposition(|field| field == 64u64.to_le_bytes()).unwrap();
    bytes[place..place + 8].copy_from_slice(&32u64.to_le_bytes());
    let overlap = GgufError::Overlap { first: "x".into(), second: "y".into() };
    assert_eq!(parse_header(&bytes), Err(overlap));
}

#[test]
fn the_alignment_is_a_power_of_two() {
    for (alignment, fits) in [(1u32, true), (64, true), (0, false), (48, false), (1 << 30, false)] {
        let mut bytes = beginning(3, 0, 1);
        text(&mut bytes, "general.alignment");
        bytes.extend(4u32.to_le_bytes());
        bytes.extend(alignment.to_le_bytes());
        assert_eq!(parse_header(&bytes).is_ok(), fits, "{alignment}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn perturbed_files_never_panic(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = file();
        for (place, byte) in places {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _ = parse_header(&bytes);
        let _ = parse_header(&bytes[..length.index(bytes.len())]);
    }

    #[test]
    fn every_tensor_that_is_read_lies_in_the_file(
        dimensions in prop::collection::vec(0u64..40, 0..5),
        kind in 0u32..32,
        offset in (0u64..8).prop_map(|blocks| blocks * 32),
    ) {
        let bytes = one_tensor(&dimensions, kind, offset);
        if let Ok(header) = parse_header(&bytes) {
            for tensor in header.tensors().values() {
                prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
                prop_assert_eq!(tensor.weight_type.tensor_bytes(&tensor.shape), Some(tensor.bytes));
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = parse_header(&[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
    }
}
