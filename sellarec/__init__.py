import warnings

# Notebooks show plain-text progress; these two warnings are about widgets and a rename inside a library.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
