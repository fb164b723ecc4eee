//! Quantized rows as whole numbers with the scales and offsets that make values of them.

use umbel_shard::WeightType;

use super::format::{self, BLOCK_VALUES, Block, GROUP_VALUES, SUPER_VALUES, SuperBlock};

/// 16 values, each of which is `scale * number + offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NumberGroup {
    pub(crate) numbers: [i8; GROUP_VALUES],
    pub(crate) scale: f32,
    pub(crate) offset: f32,
}

/// The groups of a row of one of the quantized types, in order.
///
/// # Panics
/// Where the type is not quantized, or `bytes` are not whole blocks: a tensor is checked when it is
/// loaded.
pub(crate) fn number_groups(kind: WeightType, bytes: &[u8]) -> Vec<NumberGroup> {
    match kind {
        WeightType::Q4_0 => of_blocks(bytes, format::q4_0),
        WeightType::Q4_1 => of_blocks(bytes, format::q4_1),
        WeightType::Q5_0 => of_blocks(bytes, format::q5_0),
        WeightType::Q5_1 => of_blocks(bytes, format::q5_1),
        WeightType::Q8_0 => of_blocks(bytes, format::q8_0),
        WeightType::Q4K => of_super_blocks(bytes, format::q4_k),
        WeightType::Q5K => of_super_blocks(bytes, format::q5_k),
        WeightType::Q6K => of_super_blocks(bytes, format::q6_k),
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            unreachable!("{kind} is not quantized")
        }
    }
}

fn of_blocks<const N: usize>(bytes: &[u8], read: impl Fn(&[u8; N]) -> Block) -> Vec<NumberGroup> {
    let (blocks, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "a row is whole blocks");
    let groups = blocks.iter().flat_map(|bytes| {
        let Block { values, scale, minimum } = read(bytes);
        let group = move |index: usize| NumberGroup {
            numbers: std::array::from_fn(|place| values[index * GROUP_VALUES + place]),
            scale,
            offset: minimum,
        };
        (0..BLOCK_VALUES / GROUP_VALUES).map(group)
    });
    groups.collect()
}

fn of_super_blocks<const N: usize>(
    bytes: &[u8],
    read: impl Fn(&[u8; N]) -> SuperBlock,
) -> Vec<NumberGroup> {
    let (blocks, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "a row is whole blocks");
    let groups = blocks.iter().flat_map(|bytes| {
        let block = read(bytes);
        (0..SUPER_VALUES / GROUP_VALUES).map(move |index| NumberGroup {
            numbers: std::array::from_fn(|place| block.values[index * GROUP_VALUES + place]),
            scale: block.scale * f32::from(block.scales[index]),
            offset: -(block.minimum * f32::from(block.minimums[index])),
        })
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dequantize_row;
    use crate::kernel::specimen::{ALL_TYPES, Numbers, weights};

    #[test]
    fn groups_have_the_values_of_their_row() {
        let mut numbers = Numbers(3);
        for kind in ALL_TYPES.into_iter().filter(|kind| !kind.is_float()) {
            let bytes = weights(kind, 512, &mut numbers);
            let mut expected = vec![0.0; 512];
            dequantize_row(kind, &bytes, &mut expected);
            let value =
                |group: &NumberGroup, number: i8| group.scale * f32::from(number) + group.offset;
            let groups = number_groups(kind, &bytes);
            let found: Vec<f32> = groups
                .iter()
                .flat_map(|group| group.numbers.map(|number| value(group, number)))
                .collect();
            assert_eq!(found, expected, "{kind}");
        }
    }
}
