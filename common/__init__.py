"""What the seven experiments share. Import it before TensorFlow."""
import os

# Without a GPU, soft placement makes TensorFlow print some 20 lines of warnings for each variable.
# It reads this when it is imported; 2 leaves errors.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
