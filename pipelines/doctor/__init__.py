"""Why a model fails beyond its trained length: rules by stage, model families as data."""
