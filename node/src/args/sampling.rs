//! The numbers that a sampler takes, so that others are refused before anything is fetched or loaded.

pub(super) fn temperature(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 on", |number| number >= 0.0)
}

pub(super) fn top_p(text: &str) -> Result<f32, String> {
    number(text, "a number above 0, at most 1", |number| number > 0.0 && number <= 1.0)
}

pub(super) fn min_p(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 to 1", |number| (0.0..=1.0).contains(&number))
}

pub(super) fn repetition_penalty(text: &str) -> Result<f32, String> {
    number(text, "a number above 0", |number| number > 0.0)
}

fn number(text: &str, range: &str, is_in: impl Fn(f32) -> bool) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite() && is_in(*number));
    number.ok_or_else(|| range.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use umbel_engine::{Sampler, Sampling};

    use crate::args::SamplingArguments;

    /// A command that draws tokens.
    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        sampling: SamplingArguments,
    }

    fn typed(flag: &str) -> Result<Sampling, clap::Error> {
        let typed = Typed::try_parse_from(["umbel", flag])?;
        Ok(typed.sampling.over(Sampling::greedy(), 0))
    }

    #[test]
    fn what_no_sampler_takes_is_refused_with_its_range() {
        for (flag, range) in [
            ("--temperature=-1", "from 0 on"),
            ("--temperature=inf", "from 0 on"),
            ("--temperature=nan", "from 0 on"),
            ("--top-p=0", "above 0, at most 1"),
            ("--top-p=1.5", "above 0, at most 1"),
            ("--top-p=1e-50", "above 0, at most 1"),
            ("--top-p=nan", "above 0, at most 1"),
            ("--min-p=-0.1", "from 0 to 1"),
            ("--min-p=2", "from 0 to 1"),
            ("--repetition-penalty=0", "above 0"),
            ("--repetition-penalty=-1", "above 0"),
            ("--repetition-penalty=inf", "above 0"),
        ] {
            let refused = typed(flag).expect_err(flag).to_string();
            assert!(refused.contains(range) && refused.contains(&flag[..7]), "{refused}");
        }
    }

    #[test]
    fn what_a_sampler_takes_can_be_typed() {
        for flag in [
            "--temperature=0",
            "--temperature=1e30",
            "--top-p=1e-9",
            "--top-p=1",
            "--min-p=0",
            "--min-p=1",
            "--repetition-penalty=1e-9",
            "--repetition-penalty=2",
        ] {
            let sampling = typed(flag).unwrap_or_else(|error| panic!("{error}"));
            assert!(Sampler::new(sampling).is_ok(), "{flag}");
        }
    }
}
