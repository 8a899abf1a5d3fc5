"""The paper's ablation tables, made anew on anyone's data."""
