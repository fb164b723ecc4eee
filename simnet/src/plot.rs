//! Plots, as SVG.

use plotters::prelude::*;

/// Width and height, in pixels.
const SIZE: (u32, u32) = (800, 420);

/// The colours of lines, in their order: those of Okabe and Ito, which everybody can tell apart.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// A line and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// For the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// Lines over two axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// What goes to the right.
    pub x: String,
    /// What goes up.
    pub y: String,
    /// Whether equal steps to the right are equal factors.
    pub log_x: bool,
    /// The lines.
    pub lines: Vec<Line>,
}

/// A plot that could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the plot cannot be drawn: {0}")]
pub struct PlotError(String);

impl Plot {
    /// The plot as SVG.
    ///
    /// # Errors
    /// [`PlotError`] where the drawing library refuses.
    pub fn svg(&self) -> Result<String, PlotError> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| PlotError(error.to_string()))?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let at = |x: f64| if self.log_x { x.max(1e-12).log10() } else { x };
        let least = points().map(|point| at(point.0)).fold(f64::INFINITY, f64::min);
        let most = points().map(|point| at(point.0)).fold(f64::NEG_INFINITY, f64::max);
        let top = points().map(|point| point.1).fold(0.0, f64::max) * 1.05;
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| error.to_string())?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(least..most.max(least + 1e-9), 0.0..top.max(1e-9))
            .map_err(|error| error.to_string())?;
        let label = |x: &f64| if self.log_x { power(*x) } else { format!("{x:.0}") };
        chart
            .configure_mesh()
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&label)
            .light_line_style(WHITE)
            .draw()
            .map_err(|error| error.to_string())?;
        for (line, colour) in self.lines.iter().zip(COLOURS.into_iter().cycle()) {
            let points = line.points.iter().map(|(x, y)| (at(*x), *y));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(|error| error.to_string())?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .position(SeriesLabelPosition::LowerLeft)
            .draw()
            .map_err(|error| error.to_string())?;
        root.present().map_err(|error| error.to_string())?;
        Ok(())
    }
}

/// A power of ten in figures.
fn power(exponent: f64) -> String {
    let value = 10f64.powf(exponent);
    if value >= 1.0 { format!("{value:.0}") } else { format!("{value:.0e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_lines() {
        let line = Line { name: "ours".to_owned(), points: vec![(1e-4, 1.0), (1e-2, 0.8)] };
        let [title, x, y] = ["kept", "p", "part"].map(str::to_owned);
        let svg = Plot { title, x, y, log_x: true, lines: vec![line] }.svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("ours"));
    }
}
