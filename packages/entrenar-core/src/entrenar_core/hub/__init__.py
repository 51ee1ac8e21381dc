"""Models and data sets from the Hugging Face Hub, through `huggingface_hub` and into its cache.

`client` knows where the Hub is and who asks, `failures` what goes wrong there; `transfer` lists and fetches files and
checks what arrived; `models` and `data_sets` decide which files are needed. `pushing` is the way back: `upload_choice`
says what of a folder goes there, `uploading` brings the large files into the Hub's storage. The environment
(HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE) is read at every call.
"""

from entrenar_core.hub.client import resolve_token
from entrenar_core.hub.data_sets import DatasetFiles, download_dataset
from entrenar_core.hub.models import describe_model, fetch_config, fetch_model
from entrenar_core.hub.progress import Transfer
from entrenar_core.hub.pushing import Pushed, push_files, push_folder
from entrenar_core.hub.transfer import RemoteFile, list_files

__all__ = [
    "DatasetFiles",
    "Pushed",
    "RemoteFile",
    "Transfer",
    "describe_model",
    "download_dataset",
    "fetch_config",
    "fetch_model",
    "list_files",
    "push_files",
    "push_folder",
    "resolve_token",
]
