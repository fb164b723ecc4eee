//! The loss of a training as a plot in SVG.

use std::collections::BTreeMap;

use plotters::prelude::*;

use super::metrics::History;

/// Where the plot goes.
pub(super) const PLOT_FILE: &str = "loss.svg";

/// Width and height, in pixels.
const SIZE: (u32, u32) = (800, 420);

/// Of the steps and of the validations: those of Okabe and Ito, which everybody can tell apart.
const COLOURS: [RGBColor; 2] = [RGBColor(86, 180, 233), RGBColor(213, 94, 0)];

/// Room above and below the lines, as a share of their height.
const MARGIN: f64 = 0.05;

/// The plot; `None` where there is nothing to see.
pub(super) fn svg(history: &History) -> anyhow::Result<Option<String>> {
    if history.losses.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(history, &mut svg)
        .map_err(|error| anyhow::anyhow!("the plot cannot be drawn: {error}"))?;
    Ok(Some(svg))
}

fn draw(history: &History, svg: &mut String) -> Result<(), String> {
    let lines = [("loss of each step", &history.losses), ("validation", &history.validations)];
    let points = || lines.iter().flat_map(|(_, line)| line.iter());
    let last = points().map(|(&step, _)| step).max().unwrap_or(1).max(1);
    let least = points().map(|(_, &loss)| loss).fold(f64::INFINITY, f64::min);
    let most = points().map(|(_, &loss)| loss).fold(f64::NEG_INFINITY, f64::max);
    let margin = ((most - least) * MARGIN).max(f64::EPSILON.max(most.abs() * 1e-3));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|error| error.to_string())?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0..last, least - margin..most + margin)
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("cross-entropy, nats a token")
        .light_line_style(WHITE)
        .draw()
        .map_err(|error| error.to_string())?;
    for ((name, line), colour) in lines.into_iter().zip(COLOURS) {
        if line.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(pairs(line), colour.stroke_width(2)))
            .map_err(|error| error.to_string())?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .position(SeriesLabelPosition::UpperRight)
        .draw()
        .map_err(|error| error.to_string())?;
    root.present().map_err(|error| error.to_string())
}

fn pairs(line: &BTreeMap<u64, f64>) -> impl Iterator<Item = (u64, f64)> {
    line.iter().map(|(&step, &loss)| (step, loss))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_line_for_the_steps_and_one_for_the_validations() {
        let mut history = History::default();
        assert_eq!(svg(&history).unwrap(), None);
        history.losses.insert(1, 3.0);
        let one = svg(&history).unwrap().unwrap();
        assert!(one.starts_with("<svg") && !one.contains("validation"), "{one}");
        history.losses.extend([(2, 2.0), (3, 1.5)]);
        history.validations.extend([(0, 3.5), (3, 1.75)]);
        let both = svg(&history).unwrap().unwrap();
        assert_eq!(
            both.matches("<polyline").count(),
            one.matches("<polyline").count() + 2,
            "{both}"
        );
    }
}
