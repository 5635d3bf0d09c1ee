"""Everything used around the multi-task model: data, training, evaluation, sharing."""

from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from configuration_mtl import MTLConfig
from modeling_mtl import MTLModel
from pipeline_mtl import PIPELINE_TASK, MTLPipeline

# Here and not in the Hub files: registered there, a second repository would silently run the first one's code.
AutoConfig.register(MTLConfig.model_type, MTLConfig, exist_ok=True)
AutoModel.register(MTLConfig, MTLModel, exist_ok=True)
# For a model that is in memory; a saved one names its pipeline itself.
if PIPELINE_TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(PIPELINE_TASK, MTLPipeline, pt_model=AutoModel, type="text")
