//! Trainings that go on, and texts that do not fit.

use super::*;

#[test]
fn a_text_that_no_message_holds_is_refused_with_how_long_it_may_be() {
    let text = |tokens| Example::of_text(vec![7; tokens]);
    let check = |tokens, prompt| check_lengths(&(vec![text(3)], vec![text(tokens)]), prompt, 20);
    assert!(check(21, 0).is_ok() && check(17, 4).is_ok());
    let refused = check(18, 4).unwrap_err().to_string();
    assert!(refused.contains("--max-tokens 17"), "{refused}");
    assert!(check(22, 0).is_err());
}

#[test]
fn a_training_goes_on_whatever_its_fractions_are() {
    let identity = |dropout: f32| json!({ "dropout": dropout, "alpha": 1.0 + dropout, "seed": 7 });
    for hundredths in 1_u8..100 {
        let dropout = f32::from(hundredths) / 100.0;
        let written = identity(dropout).to_string();
        let read = serde_json::from_str(&written).unwrap();
        assert_eq!(difference(&read, &identity(dropout), &[]), None, "{written}");
        assert!(difference(&read, &identity(dropout.next_up()), &[]).is_some());
    }
    let other = json!({ "seed": u64::MAX - 1 });
    assert!(difference(&json!({ "seed": u64::MAX }), &other, &[]).is_some());
}

#[test]
fn other_texts_have_another_digest() {
    let text = |ids: [u32; 3]| Example::of_text(ids.to_vec());
    let (one, other) = (text([1, 2, 3]), text([4, 5, 6]));
    let of = |learned: &[&Example], validation: &[&Example]| {
        let owned = |texts: &[&Example]| texts.iter().map(|&text| text.clone()).collect();
        digest(&(owned(learned), owned(validation)))
    };
    let digests = [
        of(&[&one, &other], &[]),
        of(&[&other, &one], &[]),
        of(&[&one], &[&other]),
        of(&[&one, &text([4, 5, 7])], &[]),
    ];
    assert_eq!(digests[0], of(&[&one, &other], &[]));
    let different: std::collections::BTreeSet<_> = digests.iter().collect();
    assert_eq!(different.len(), digests.len());
}
