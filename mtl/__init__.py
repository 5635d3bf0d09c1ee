"""Everything used around the multi-task model: data, training, evaluation, sharing."""

from transformers import AutoConfig, AutoModel

from configuration_mtl import MTLConfig
from modeling_mtl import MTLModel

# Here and not in the Hub files: registered there, a second repository would silently run the first one's code.
AutoConfig.register(MTLConfig.model_type, MTLConfig, exist_ok=True)
AutoModel.register(MTLConfig, MTLModel, exist_ok=True)
