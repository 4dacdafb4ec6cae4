//! The linearity theorem's coefficient of one tensor: what the model loses per unit of relative
//! squared error in it (arXiv 2411.17525, Algorithm 3).

/// `loss = alpha * error`, fitted through the origin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alpha {
    /// Not below zero.
    pub value: f64,
    /// Share of the losses' spread that the line explains.
    pub r2: f64,
}

impl Alpha {
    /// Fits pairs of error and loss. The paper's errors are of one size; over two decades the
    /// largest would be all that counts, so each pair counts by its share of its own error.
    pub fn fit(pairs: &[(f64, f64)]) -> Alpha {
        let ratios = || pairs.iter().map(|(error, loss)| loss / error);
        let value = ratios().sum::<f64>() / pairs.len().max(1) as f64;
        let mean = pairs.iter().map(|(_, loss)| loss).sum::<f64>() / pairs.len().max(1) as f64;
        let square = |x: f64| x * x;
        let spread: f64 = pairs.iter().map(|(_, loss)| square(loss - mean)).sum();
        let missed: f64 = pairs.iter().map(|(error, loss)| square(loss - value * error)).sum();
        let r2 = if spread > 0.0 { 1.0 - missed / spread } else { 0.0 };
        Alpha { value: value.max(0.0), r2 }
    }
}
