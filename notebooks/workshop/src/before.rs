//! What a notebook needs from earlier ones, and which one to run when it is missing.

use std::path::PathBuf;

use aws_sdk_lambda::Client;
use aws_sdk_lambda::error::{DisplayErrorContext, SdkError};
use aws_sdk_lambda::operation::get_function_configuration::{
    GetFunctionConfigurationError, GetFunctionConfigurationOutput,
};

/// A missing result of an earlier notebook.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The model file.
    #[error("cannot read {} ({source}): run notebook 1 first, it writes that", path.display())]
    Model {
        /// Its path.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// The deployed function.
    #[error("there is no function {0}: run notebook 3 first, it deploys that")]
    Function(String),
    /// The cloud did not answer.
    #[error("cannot look at function {function}: {}", DisplayErrorContext(source))]
    Cloud {
        /// Its name.
        function: String,
        /// Why not.
        source: Box<SdkError<GetFunctionConfigurationError>>,
    },
}

/// The bytes of `target/model.json`, which notebook 1 writes.
///
/// # Errors
/// [`Missing::Model`]
pub fn trained_model() -> Result<Vec<u8>, Missing> {
    let path = PathBuf::from("target/model.json");
    std::fs::read(&path).map_err(|source| Missing::Model { path, source })
}

/// The configuration of the version behind `live`, which notebook 3 deploys.
///
/// # Errors
/// [`Missing::Function`], or [`Missing::Cloud`] when the cloud does not answer.
pub async fn live_function(
    lambda: &Client,
    function: &str,
) -> Result<GetFunctionConfigurationOutput, Missing> {
    let asked = lambda
        .get_function_configuration()
        .function_name(function)
        .qualifier("live");
    asked.send().await.map_err(|source| {
        if source
            .as_service_error()
            .is_some_and(|e| e.is_resource_not_found_exception())
        {
            return Missing::Function(function.to_owned());
        }
        Missing::Cloud {
            function: function.to_owned(),
            source: Box::new(source),
        }
    })
}
