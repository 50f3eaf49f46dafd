//! The report's figure.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::{EMPTY, Measures, ONNX, OURS, PLAIN, SKLEARN, Samples};

const SIZE: (u32, u32) = (960, 300);
const OUR_COLOUR: RGBColor = RGBColor(0, 114, 178);
const PEER_COLOUR: RGBColor = RGBColor(150, 150, 150);

/// Three panels of bars on a logarithmic axis: cold start, one warm call, memory.
pub fn draw(path: &Path, measured: &BTreeMap<&'static str, Measures>) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |e: String| anyhow!("{}: {e}", path.display());
    area.fill(&WHITE).map_err(|e| failed(e.to_string()))?;
    let panels = area.split_evenly((1, 3));
    for (panel, (title, what)) in panels.iter().zip([
        ("Cold start, ms", "cold_ms"),
        ("One warm call, µs", "warm_us"),
        ("Peak memory, MB", "peak_rss_mb"),
    ]) {
        bars(panel, title, what, measured).map_err(|e| failed(e.to_string()))?;
    }
    area.present().map_err(|e| failed(e.to_string()))
}

type Panel<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn bars(
    panel: &Panel<'_>,
    title: &str,
    what: &str,
    measured: &BTreeMap<&'static str, Measures>,
) -> Result<(), Box<dyn std::error::Error>> {
    let names = [ONNX, SKLEARN, PLAIN, OURS, EMPTY];
    let value = |name: &str| {
        measured
            .get(name)
            .and_then(|m| m.get(what))
            .map_or(f64::NAN, Samples::median)
    };
    let values = names.map(value);
    let low = values.into_iter().fold(f64::INFINITY, f64::min) / 2.0;
    let high = values.into_iter().fold(0.0, f64::max) * 4.0;
    let mut chart = ChartBuilder::on(panel)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .y_label_area_size(if what == "cold_ms" { 140 } else { 4 })
        .build_cartesian_2d((low..high).log_scale(), 0.0..names.len() as f64)?;
    for (i, (name, value)) in names.into_iter().zip(values).enumerate() {
        let y = i as f64;
        let colour = if name == OURS {
            OUR_COLOUR
        } else {
            PEER_COLOUR
        };
        chart.draw_series([Rectangle::new(
            [(low, y + 0.2), (value, y + 0.8)],
            colour.filled(),
        )])?;
        let number = if value < 100.0 {
            format!(" {value:.1}")
        } else {
            format!(" {value:.0}")
        };
        let style = ("sans-serif", 13).into_font().into_text_style(panel);
        if what == "cold_ms" {
            let (x, y) = chart.backend_coord(&(low, y + 0.7));
            let (left, top) = panel.get_base_pixel();
            panel.draw_text(name, &style, (x - left - 136, y - top))?;
        }
        chart.draw_series([Text::new(number, (value, y + 0.7), style)])?;
    }
    Ok(())
}
