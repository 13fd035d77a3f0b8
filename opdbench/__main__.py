"""`python -m opdbench`: for launchers of several processes, such as `torchrun -m opdbench run`."""

from opdbench.cli import main

if __name__ == "__main__":
    main()
