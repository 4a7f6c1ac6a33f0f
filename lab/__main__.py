"""`python -m lab`, in a checkout."""

from channelvq.cli import guarded
from lab.cli import app

if __name__ == "__main__":
    guarded(app)
