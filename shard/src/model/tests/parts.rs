//! GGUF models in several files.

use super::*;

/// Writes a fixture as one file and as two; gives the one and the folder of the two.
fn write(root: &Path, fixture: &str) -> (PathBuf, PathBuf) {
    let original = open(root, &fixture_folder(fixture)).unwrap();
    let writer = || {
        let mut writer = GgufWriter::of_model(original.config(), &all_weights(&original)).unwrap();
        writer.value("general.file_type", WriteValue::U32(0));
        writer
    };
    let (one, folder) = (root.join("one.gguf"), root.join(format!("{fixture} in parts")));
    fs::write(&one, writer().to_bytes()).unwrap();
    fs::create_dir(&folder).unwrap();
    for (number, part) in (1..).zip(writer().into_parts(2)) {
        fs::write(part_path(&folder, number), part.to_bytes()).unwrap();
    }
    (one, folder)
}

fn part_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("a-model-{number:05}-of-00002.gguf"))
}

#[test]
fn any_part_opens_the_whole_model() {
    let root = tempfile::tempdir().unwrap();
    // With factors of the rotary embedding, with biases, and with rows that are moved.
    for fixture in ["llama3-rope", "qwen2", "llama"] {
        let (one, folder) = write(root.path(), fixture);
        let one = open(root.path(), &one).unwrap();
        let weights = all_weights(&one);
        let ids = [1, 2].map(|number| {
            let parts = open(root.path(), &part_path(&folder, number)).unwrap();
            assert_eq!(parts.name(), "a-model");
            assert_eq!(parts.config(), one.config(), "{fixture}");
            assert_eq!(parts.manifest().files().len(), 2);
            assert_eq!(parts.manifest().quantization(), one.manifest().quantization());
            assert_eq!(parts.gguf_path(), Some(part_path(&folder, 1).as_path()));
            let found = all_weights(&parts);
            assert_eq!(found.iter().count(), weights.iter().count());
            for (name, weight) in weights.iter() {
                assert!(found.get(name).unwrap().bytes() == weight.bytes(), "{fixture} {name}");
            }
            parts.id()
        });
        assert_eq!(ids[0], ids[1], "whichever part is named");
        assert_ne!(ids[0], one.id(), "other files are another model");
    }
}

#[test]
fn parts_that_do_not_belong_together_are_named() {
    let root = tempfile::tempdir().unwrap();
    let (_, folder) = write(root.path(), "llama");
    let [first, second] = [1, 2].map(|number| part_path(&folder, number));
    let error = |path: &Path| open(root.path(), path).unwrap_err();

    let renamed = folder.join("renamed.gguf");
    fs::copy(&second, &renamed).unwrap();
    assert!(matches!(error(&renamed), OpenModelError::PartName { .. }));

    let bytes = [&first, &second].map(|path| fs::read(path).unwrap());
    fs::write(&second, &bytes[0]).unwrap();
    assert!(matches!(error(&first), OpenModelError::OtherPart { path } if path == second));
    let (_, other) = write(root.path(), "qwen2");
    fs::copy(part_path(&other, 2), &second).unwrap();
    assert!(matches!(error(&first), OpenModelError::OtherPart { .. }));

    for (missing, named) in [(&first, &second), (&second, &first)] {
        fs::write(&first, &bytes[0]).unwrap();
        fs::write(&second, &bytes[1]).unwrap();
        fs::remove_file(missing).unwrap();
        let text = error(named).to_string();
        assert!(text.contains(&missing.display().to_string()), "{text}");
    }
}
