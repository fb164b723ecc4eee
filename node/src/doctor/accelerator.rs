//! GPUs that a server could compute on, and why it could not.

use std::fs;
use std::path::Path;

use umbel_engine::{Gpu, OpenGpuError};

use super::Finding;
use crate::serve::GPU_WORKSPACE_BYTES;

/// Memory below which a GPU holds no useful span: beside what a server keeps free for passes, the engine's
/// own buffers take some 100 MB, and the driver as much again, before the first block.
const GPU_BYTES_MIN: u64 = GPU_WORKSPACE_BYTES + 1_000_000_000;

/// Where Linux lists what is plugged in.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// The number of NVIDIA among the makers of PCI devices.
const NVIDIA: &str = "0x10de";

/// The class of PCI devices that display or compute.
const DISPLAYS: &str = "0x03";

const SUBJECT: &str = "accelerator";

pub(super) fn look() -> Vec<Finding> {
    match Gpu::count() {
        Err(reason) => vec![judge_none(&reason, plugged_in(Path::new(PCI_DEVICES)))],
        Ok(0) => vec![judge_none(&OpenGpuError::NoDevice { wanted: 0, found: 0 }, 0)],
        Ok(count) => (0..count).map(|ordinal| judge(ordinal, &open(ordinal))).collect(),
    }
}

/// A GPU that can be used.
struct Seen {
    name: String,
    free_bytes: u64,
    total_bytes: u64,
}

fn open(ordinal: usize) -> Result<Seen, OpenGpuError> {
    let gpu = Gpu::open(ordinal)?;
    let (free, total) = gpu.memory()?;
    Ok(Seen { name: gpu.name().to_owned(), free_bytes: free as u64, total_bytes: total as u64 })
}

/// One GPU of those that the driver knows.
fn judge(ordinal: usize, seen: &Result<Seen, OpenGpuError>) -> Finding {
    let flag = if ordinal == 0 { "cuda".to_owned() } else { format!("cuda:{ordinal}") };
    let seen = match seen {
        Ok(seen) => seen,
        Err(reason @ OpenGpuError::OldDevice { .. }) => {
            let advice = "nothing is wrong: servers compute on the processor, or on a newer GPU";
            return Finding::note(SUBJECT, reason.to_string(), advice);
        }
        Err(reason) => return unusable(&format!("GPU {ordinal}"), reason),
    };
    let megabytes = |bytes: u64| bytes / 1_000_000;
    let what = format!(
        "{}, with {} of {} MB free: umbel serve --device {flag}",
        seen.name,
        megabytes(seen.free_bytes),
        megabytes(seen.total_bytes)
    );
    if seen.free_bytes < GPU_BYTES_MIN {
        let advice = "another program has its memory (nvidia-smi shows which): end it, or serve on \
                      the processor with --device cpu";
        return Finding::note(SUBJECT, what, advice);
    }
    Finding::good(SUBJECT, what)
}

/// No GPU that the driver knows, on a machine with so many of NVIDIA's plugged in.
fn judge_none(reason: &OpenGpuError, plugged_in: usize) -> Finding {
    match reason {
        OpenGpuError::NoDriver if plugged_in == 0 => {
            Finding::good(SUBJECT, "none of NVIDIA's: servers compute on the processor")
        }
        OpenGpuError::NoDriver => {
            let what = format!("{plugged_in} of NVIDIA's, and no driver for them (libcuda.so.1)");
            Finding::note(
                SUBJECT,
                what,
                "install NVIDIA's driver, 530 or later; until then servers \
                                          compute on the processor",
            )
        }
        OpenGpuError::NoDevice { .. } => {
            let advice = "is one plugged in, and may this user see it (nvidia-smi, \
                          CUDA_VISIBLE_DEVICES, a container's settings)?";
            Finding::note(SUBJECT, "there is a driver of NVIDIA's, and it knows of no GPU", advice)
        }
        OpenGpuError::OldDriver { .. } | OpenGpuError::OldDevice { .. } | OpenGpuError::Cuda(_) => {
            unusable("the GPU", reason)
        }
    }
}

/// Something that a person could mend.
fn unusable(which: &str, reason: &OpenGpuError) -> Finding {
    let advice = match reason {
        OpenGpuError::OldDriver { .. } => {
            "update NVIDIA's driver to 530 or later; until then servers compute on the processor"
        }
        OpenGpuError::NoDriver
        | OpenGpuError::NoDevice { .. }
        | OpenGpuError::OldDevice { .. }
        | OpenGpuError::Cuda(_) => {
            "look for the driver's errors in the system's log (dmesg); until then servers compute \
             on the processor"
        }
    };
    Finding::note(SUBJECT, format!("{which} cannot be used: {reason}"), advice)
}

/// How many GPUs of NVIDIA the system sees, with a driver or without.
fn plugged_in(devices: &Path) -> usize {
    let Ok(entries) = fs::read_dir(devices) else {
        return 0;
    };
    let is = |folder: &Path, file: &str, begins: &str| {
        fs::read_to_string(folder.join(file)).is_ok_and(|text| text.starts_with(begins))
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| is(path, "vendor", NVIDIA) && is(path, "class", DISPLAYS)).count()
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    fn seen(free_bytes: u64) -> Result<Seen, OpenGpuError> {
        Ok(Seen { name: "Example 9000".to_owned(), free_bytes, total_bytes: 24_000_000_000 })
    }

    #[test]
    fn a_gpu_that_can_be_used_is_good_and_named_as_the_flag_names_it() {
        let finding = judge(0, &seen(20_000_000_000));
        assert_eq!(finding.grade, Grade::Good);
        assert!(finding.what.contains("Example 9000, with 20000 of 24000 MB"), "{}", finding.what);
        assert!(finding.what.ends_with("--device cuda"), "{}", finding.what);
        assert!(judge(2, &seen(20_000_000_000)).what.ends_with("--device cuda:2"));
    }

    #[test]
    fn a_gpu_that_is_full_or_too_old_gets_a_note() {
        // Of little more than what passes need, no block would have anything.
        assert_eq!(judge(0, &seen(1_200_000_000)).grade, Grade::Note);
        let full = judge(0, &seen(100_000_000));
        assert_eq!(full.grade, Grade::Note);
        assert!(full.advice.is_some_and(|advice| advice.contains("nvidia-smi")));
        let old = OpenGpuError::OldDevice { name: "Example 10".to_owned(), major: 6, minor: 1 };
        let old = judge(0, &Err(old));
        assert_eq!(old.grade, Grade::Note);
        assert!(old.what.contains("6.1 and"), "{}", old.what);
        assert!(old.advice.is_some());
    }

    #[test]
    fn a_driver_that_is_missing_or_old_is_noted_where_there_is_a_gpu() {
        assert_eq!(judge_none(&OpenGpuError::NoDriver, 0).grade, Grade::Good);
        let missing = judge_none(&OpenGpuError::NoDriver, 2);
        assert_eq!(missing.grade, Grade::Note);
        assert!(missing.advice.is_some_and(|advice| advice.contains("install")));
        let old = judge_none(&OpenGpuError::OldDriver { found: 11_040 }, 1);
        assert!(old.what.contains("CUDA 11.4"), "{}", old.what);
        assert!(old.advice.is_some_and(|advice| advice.contains("update")));
        let none = judge_none(&OpenGpuError::NoDevice { wanted: 0, found: 0 }, 0);
        assert!(none.advice.is_some_and(|advice| advice.contains("plugged in")));
    }

    #[test]
    fn devices_are_counted_by_their_maker_and_their_class() {
        let folder = tempfile::tempdir().unwrap();
        let devices = [
            ("a", "0x10de", "0x030000"),
            ("b", "0x10de", "0x040300"),
            ("c", "0x8086", "0x030000"),
            ("d", "0x10de", "0x030200"),
        ];
        for (name, vendor, class) in devices {
            let device = folder.path().join(name);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
            fs::write(device.join("class"), format!("{class}\n")).unwrap();
        }
        assert_eq!(plugged_in(folder.path()), 2);
        assert_eq!(plugged_in(&folder.path().join("nowhere")), 0);
    }
}
