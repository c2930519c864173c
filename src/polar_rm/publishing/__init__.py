"""Model cards, and the upload of saved models to the Hugging Face Hub."""

from polar_rm.publishing.card import model_card, write_card
from polar_rm.publishing.upload import files_of, upload

__all__ = ["files_of", "model_card", "upload", "write_card"]
