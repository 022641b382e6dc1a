"""Why a quantized model is as good as it is: what calibrators find, tensor by tensor."""
